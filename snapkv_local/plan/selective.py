"""What a selective prefill computes: where it may choose, how many rows go on, and the layers' work.

The rules are those of csrc/prefill/select.cpp and csrc/evict/selection.cpp. Whether looks agree is known
only when they have looked, so all this is for looks that agree as soon as they are asked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from snapkv_local.config import SnapKVConfig
from snapkv_local.plan.kinds import window
from snapkv_local.plan.layers import cached_layers
from snapkv_local.plan.model import PlannedModel

RUN = 8  # rows that go on together
_N_FIRST = 4  # rows at the beginning that go on
_AHEAD = 4  # chunks of K and V alone, in chunks that go through whole layers
_ALIGNMENT = 8  # rows that a look's tail begins at


@dataclass(frozen=True)
class Selection:
    """The earliest that there can be.

    Attributes:
        n_layer: layers that all rows go through.
        n_rows: that the others compute.
        work: rows that go through a layer, as share of all rows through all layers; looks come on top.
    """

    n_layer: int
    n_rows: int
    work: float


def selection(
    model: PlannedModel, n_prompt: int, config: SnapKVConfig, group: int
) -> Selection | None:
    """Of a prompt with G = group; None where the prefill is exact."""
    if config.prefill != "selective" or config.n_kept(n_prompt) >= n_prompt:
        return None
    n_all = model.shape.n_layer
    n_layer = _chosen_after(_boundaries(model, group), n_all, config)
    if n_layer is None:
        return None
    if not _looks(n_prompt, config):
        return None
    n_rows = _n_rows(model, n_prompt, config)
    share = n_layer / n_all
    return Selection(n_layer, n_rows, share + (1 - share) * n_rows / n_prompt)


def bytes_ahead(
    model: PlannedModel, n_prompt: int, config: SnapKVConfig, n_ubatch: int, hidden_host: bool
) -> tuple[int, int]:
    """Of a look ahead's graphs, which make K and V of a layer: without inputs, and these; 0 without looks."""
    if config.prefill != "selective" or not _looks(n_prompt, config):
        return 0, 0
    is_iswa = any(layer.is_swa for layer in model.layers)
    rest = n_prompt - (n_prompt - min(config.window_size, n_prompt)) // _ALIGNMENT * _ALIGNMENT
    n = min(n_ubatch, n_prompt)
    if not hidden_host and not is_iswa and rest <= n:
        n = min(_AHEAD * n, n_prompt - rest)
    n_row = max(model.layers[il].n_row for il in cached_layers(model))
    return 4 * n * (model.shape.n_embd + n_row), 4 * n * model.shape.n_embd


def _boundaries(model: PlannedModel, group: int) -> list[int]:
    """Layers up to each end of a group but the last."""
    cached = cached_layers(model)
    return [cached[i] + 1 for i in range(group - 1, len(cached) - 1, group)]


def _chosen_after(ends: list[int], n_all: int, config: SnapKVConfig) -> int | None:
    """Layers after which rows are chosen; None if no group ends where they can be."""
    depth = config.select_depth * n_all
    n_looks = 0
    for i, end in enumerate(ends):
        after = ends[i + 1] if i + 1 < len(ends) else n_all
        # the first look has none to be compared with, unless it need not agree
        if n_looks == 0 and config.select_settled > 0 and after >= depth:
            n_looks = 1
        elif end >= depth:
            return end
    return None


def _wanted(n_prompt: int, config: SnapKVConfig) -> int:
    wanted = max(math.ceil(config.select_share * n_prompt), config.select_min)
    most = max(config.n_kept(n_prompt), config.most_rows() or 0)
    return min(n_prompt, max(wanted, most))


def _looks(n_prompt: int, config: SnapKVConfig) -> bool:
    """Not where the least number of rows is all there are."""
    return _wanted(n_prompt, config) < n_prompt or config.select_share == 1


def _n_rows(model: PlannedModel, n_prompt: int, config: SnapKVConfig) -> int:
    wanted = _wanted(n_prompt, config)
    n_runs = -(-n_prompt // RUN)
    n_swa = window(model.shape) if any(layer.is_swa for layer in model.layers) else 0
    n_tail = min(n_prompt, config.window_size + n_swa)
    first = min(n_prompt, max(_N_FIRST, config.n_sink))
    stays = {row // RUN for row in (*range(first), *range(n_prompt - n_tail, n_prompt))}
    n_missing = n_runs * RUN - n_prompt  # of the last run
    n_taken = min(n_runs, max(len(stays), -(-(wanted + n_missing) // RUN)))
    return n_taken * RUN - n_missing
