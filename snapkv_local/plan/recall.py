"""What recall while answering takes beside the vault, in host memory (csrc/recall)."""

from __future__ import annotations

from snapkv_local.config import SnapKVConfig
from snapkv_local.hardware import n_cores
from snapkv_local.plan.layers import cached_layers
from snapkv_local.plan.model import PlannedModel

_FLOAT = 4
_F16 = 2
_LANES = 8  # queries at a time
_STRETCH = 16  # tokens of the vault that the index has two rows for
_N_FIRST = 16  # of the prompt's last queries, which are asked at the first recall
_N_TIMES_KEPT = 4  # rows that are asked, at least, for one that is kept


def n_asked(n_prompt: int, config: SnapKVConfig) -> int:
    """Rows of each KV head that queries are compared with one by one."""
    wanted = max(config.recall_rows, _N_TIMES_KEPT * config.n_kept(n_prompt))
    return min(wanted, n_prompt) if config.recall_rows else n_prompt


def bytes_index(model: PlannedModel, n_prompt: int, config: SnapKVConfig) -> int:
    """Of the vault's stretches, where not all rows are asked."""
    layers = [model.layers[il] for il in cached_layers(model)]
    if n_asked(n_prompt, config) == n_prompt:
        return 0
    return 2 * _F16 * -(-n_prompt // _STRETCH) * sum(x.n_head_kv * x.head_k for x in layers)


def bytes_votes(
    model: PlannedModel, n_prompt: int, config: SnapKVConfig, n_threads: int | None = None
) -> int:
    """Of what each thread counts a KV head's votes in: logits of all queries, and votes."""
    n_queries = max(min(_N_FIRST, config.window_size), config.recall_queries)
    layers = [model.layers[il] for il in cached_layers(model)]
    n_lanes = max(n_queries * layer.n_voters // layer.n_head_kv for layer in layers)
    n_lanes = -(-n_lanes // _LANES) * _LANES
    asked, n_stretches = n_asked(n_prompt, config), -(-n_prompt // _STRETCH)
    logits = asked + (2 * n_stretches if asked < n_prompt else 0)
    size = _FLOAT * (n_lanes * logits + 2 * n_prompt + 2 * n_stretches)
    return size * (n_threads or n_cores())


def bytes_recall(model: PlannedModel, n_prompt: int, config: SnapKVConfig) -> int:
    """All of it: the index, votes, what each kept row is worth, twice while it changes, and queries."""
    layers = [model.layers[il] for il in cached_layers(model)]
    n_kept = config.n_kept(n_prompt)
    worth = 2 * n_kept * sum(layer.n_head_kv for layer in layers)
    queries = config.recall_queries * sum(layer.n_voting for layer in layers)
    votes = bytes_votes(model, n_prompt, config)
    return bytes_index(model, n_prompt, config) + votes + _FLOAT * (worth + queries)
