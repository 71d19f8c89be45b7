"""Budgets by need: each layer gets the rows that it takes to hold a share of the attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from snapkv_local.declared import option
from snapkv_local.policies.layered import Layered
from snapkv_local.policies.rows import check_n_rows, n_prefix
from snapkv_local.policies.scoring import group_mean, votes
from snapkv_local.policies.view import LayerView, PromptView


@dataclass(frozen=True)
class Adaptive(Layered):
    """All layers hold the same share of their window's attention mass, as large as the rows allow.

    Ours. AdaKV (Feng et al., arXiv 2407.11550, section 3) shares the rows of a layer out over its
    heads, with a safeguard; the heads of a layer keep equally many rows here, and layers differ. Rows
    are counted in the order of the inner policy's scores.

    Attributes:
        share: of the attention mass, window included, mean over KV heads, beyond which a layer gets no
            more rows. 1 uses all rows; less may leave some unused.
        least: share of an even budget that each layer gets at least.
    """

    name: ClassVar[str] = "adaptive"
    source: ClassVar[str] = "arXiv 2407.11550, section 3"

    share: float = option(1.0, most=1)
    least: float = option(0.2, most=1)

    def n_observed(self, prompt: PromptView) -> int:
        """The window's rows too, whose attention is counted."""
        return max(min(prompt.window_size, prompt.n_prompt), super().n_observed(prompt))

    def rows(self, n_rows: int, layers: Sequence[LayerView], prompt: PromptView) -> list[int]:
        """Of each layer, at most n_rows in the mean."""
        n_always = len(self.always(prompt))
        check_n_rows(prompt, n_rows, n_always)
        floor, most = max(n_always, int(self.least * n_rows)), n_prefix(prompt)
        curves = [self.held(layer, prompt) for layer in layers]

        def needed(share: float) -> npt.NDArray[np.int64]:
            found = np.array([np.searchsorted(curve, share) for curve in curves], dtype=np.int64)
            return np.clip(found, floor, most)

        total = n_rows * len(layers)
        low, high = 0.0, self.share
        if needed(high).sum() <= total:
            return [int(n) for n in needed(high)]
        # to the last bit of a share: beyond it, no more rows could be told apart
        for _ in range(52):
            middle = (low + high) / 2
            low, high = (middle, high) if needed(middle).sum() <= total else (low, middle)
        return [int(n) for n in needed(low)]

    def held(self, layer: LayerView, prompt: PromptView) -> npt.NDArray[np.float64]:
        """Share of the window's attention mass on the window and the best 0, 1, ... m rows: [m + 1]."""
        key = (self.of, "held", layer.index)
        if key not in prompt.cache:
            n, m = prompt.n_prompt, n_prefix(prompt)
            mass = group_mean(votes(layer, m, n, n, "sum"), layer.k.shape[0]).astype(np.float64)
            mass /= mass.sum(axis=1, keepdims=True)
            score = self.of.scores(layer, prompt).copy()
            score[:, self.of.always(prompt)] = np.inf
            order = np.argsort(-score, axis=1, kind="stable")
            best = np.take_along_axis(mass, order, axis=1).mean(axis=0)
            window = mass[:, m:].sum(axis=1).mean()
            prompt.cache[key] = window + np.concatenate([[0.0], np.cumsum(best)])
        curve: npt.NDArray[np.float64] = prompt.cache[key]
        return curve
