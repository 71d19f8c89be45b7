"""Budgets by score: one bar for all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from snapkv_local.declared import option
from snapkv_local.policies.layered import Layered
from snapkv_local.policies.rows import check_n_rows, n_prefix
from snapkv_local.policies.view import LayerView, PromptView


@dataclass(frozen=True)
class Level(Layered):
    """Each layer gets as many rows as its scores exceed a bar that is the same for all layers.

    For scores that layers have in common, such as the attention of `replay`. Kim et al., arXiv
    2505.23416, section 3.4, share the rows out over all heads of all layers so; the heads of a layer
    keep equally many here, the mean of what each would get.

    Attributes:
        least: share of an even budget that each layer gets at least.
    """

    name: ClassVar[str] = "level"
    source: ClassVar[str] = "arXiv 2505.23416, section 3.4"

    least: float = option(0.1, most=1)

    def rows(self, n_rows: int, layers: Sequence[LayerView], prompt: PromptView) -> list[int]:
        """Of each layer, at most n_rows in the mean."""
        n_always = len(self.always(prompt))
        check_n_rows(prompt, n_rows, n_always)
        floor, most = max(n_always, int(self.least * n_rows)), n_prefix(prompt)
        if most == 0:
            return [0] * len(layers)
        scores = [np.sort(self.of.scores(layer, prompt), axis=None) for layer in layers]
        heads = [len(layer.k) for layer in layers]

        def above(bar: float) -> npt.NDArray[np.int64]:
            found = [
                -(-(len(row) - int(np.searchsorted(row, bar, "right"))) // n)
                for row, n in zip(scores, heads, strict=True)
            ]
            return np.clip(np.array(found, dtype=np.int64), floor, most)

        total = n_rows * len(layers)
        low, high = min(float(row[0]) for row in scores), max(float(row[-1]) for row in scores)
        if above(low).sum() <= total:
            return [int(n) for n in above(low)]
        # to the last bit of a score: beyond it, no more rows could be told apart
        for _ in range(52):
            middle = (low + high) / 2
            low, high = (low, middle) if above(middle).sum() <= total else (middle, high)
        return [int(n) for n in above(high)]
