"""What recall while answering takes beside the vault, in host memory (csrc/recall)."""

from __future__ import annotations

from snapkv_local.config import SnapKVConfig
from snapkv_local.plan.layers import cached_layers
from snapkv_local.plan.model import PlannedModel

_FLOAT = 4
_N_FIRST = 16  # of the prompt's last queries, which are asked at the first recall
_N_SCORES = 4  # numbers of a row that are held at once: joined, their mean, pooled, ranked


def bytes_votes(model: PlannedModel, n_prompt: int, config: SnapKVConfig) -> int:
    """Of the largest graph: the attention of all queries of a KV head to all rows of the vault."""
    n_queries = max(min(_N_FIRST, config.window_size), config.recall_queries)
    layers = [model.layers[il] for il in cached_layers(model)]
    return max(
        _FLOAT * n_queries * layer.n_voters // layer.n_head_kv * (n_prompt + layer.head_k)
        for layer in layers
    )


def bytes_recall(model: PlannedModel, n_prompt: int, config: SnapKVConfig) -> int:
    """All of it: votes, what each kept row is worth, twice while it changes, and the queries that ask."""
    layers = [model.layers[il] for il in cached_layers(model)]
    n_kept = config.n_kept(n_prompt)
    worth = 2 * n_kept * sum(layer.n_head_kv for layer in layers)
    queries = config.recall_queries * sum(layer.n_voting for layer in layers)
    return bytes_votes(model, n_prompt, config) + _FLOAT * (_N_SCORES * n_prompt + worth + queries)
