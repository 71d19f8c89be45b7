"""What policies have in common that share rows out over layers, where another one chooses them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from snapkv_local.declared import option
from snapkv_local.policies.policy import Policy
from snapkv_local.policies.ranked import Ranked
from snapkv_local.policies.rows import Ids, Positions
from snapkv_local.policies.snapkv_paper import SnapKVPaper
from snapkv_local.policies.view import LayerView, PromptView


@dataclass(frozen=True)
class Layered(Policy):
    """Gives layers different numbers of rows.

    Attributes:
        of: the policy that chooses within a layer.
    """

    of: Ranked = option(SnapKVPaper(), cure="give a policy that scores rows, such as snapkv")

    def in_prefill(self) -> Policy:
        """The inner policy: a prefill evicts a layer's rows before it has seen the next one."""
        return self.of

    def repeats(self) -> bool:
        """As the inner policy."""
        return self.of.repeats()

    def n_observed(self, prompt: PromptView) -> int:
        """As the inner policy."""
        return self.of.n_observed(prompt)

    def always(self, prompt: PromptView) -> Positions:
        """As the inner policy."""
        return self.of.always(prompt)

    def select(self, layer: LayerView, prompt: PromptView, n_rows: int) -> Ids:
        """As the inner policy."""
        return self.of.select(layer, prompt, n_rows)


def whole(shares: list[Fraction]) -> list[int]:
    """Whole numbers, each less than 1 from its share, whose sum is the sum's floor."""
    bounds, total = [0], Fraction(0)
    for share in shares:
        total += share
        bounds.append(math.floor(total))
    return [end - begin for begin, end in pairwise(bounds)]
