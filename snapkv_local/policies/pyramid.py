"""PyramidKV: low layers keep more rows than high ones, in a straight line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from snapkv_local.declared import option
from snapkv_local.policies.layered import Layered, whole
from snapkv_local.policies.rows import check_n_rows, n_prefix
from snapkv_local.policies.view import LayerView, PromptView


@dataclass(frozen=True)
class Pyramid(Layered):
    """Budgets that fall linearly from the first cached layer to the last.

    Cai et al., "PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling",
    arXiv 2406.02069, section 4. The last layer gets n_rows / beta, the first one what makes the mean
    n_rows; the line is made flatter where the first layer would get more rows than there are, or the
    last one fewer than are protected.

    Attributes:
        beta: steepness; 1 gives all layers the same. 20 in the authors' code.
    """

    name: ClassVar[str] = "pyramid"
    source: ClassVar[str] = "arXiv 2406.02069, section 4"

    beta: float = option(20.0, least=1, most=1000)

    def rows(self, n_rows: int, layers: Sequence[LayerView], prompt: PromptView) -> list[int]:
        """Of each layer; n_rows in the mean, exactly."""
        n_always = len(self.always(prompt))
        check_n_rows(prompt, n_rows, n_always)
        # twice the mean, less the most that a layer can have
        least = max(n_always, 2 * n_rows - n_prefix(prompt))
        last = max(Fraction(n_rows) / Fraction(self.beta), Fraction(least))
        steps = max(1, len(layers) - 1)
        step = 2 * (n_rows - last) / steps
        if len(layers) == 1:
            return [n_rows]
        return whole([last + step * (steps - i) for i in range(len(layers))])
