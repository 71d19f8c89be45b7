"""One choice for a whole layer, as models of latent attention have to make it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from snapkv_local.policies.ranked import Ranked
from snapkv_local.policies.rows import Positions, Scores
from snapkv_local.policies.snapkv import SnapKV
from snapkv_local.policies.view import LayerView, PromptView


@dataclass(frozen=True)
class Joint(Ranked):
    """All KV heads of a layer keep the same rows: the mean of their scores decides.

    The engine chooses so where a layer has one row for all heads (MLA).

    Attributes:
        of: the policy that scores the rows.
    """

    name: ClassVar[str] = "joint"
    source: ClassVar[str] = "none: what models of latent attention ask for"

    of: Ranked = field(default=SnapKV())

    def asks(self) -> bool:
        """As the inner policy."""
        return self.of.asks()

    def seeks(self) -> bool:
        """As the inner policy."""
        return self.of.seeks()

    def n_observed(self, prompt: PromptView) -> int:
        """As the inner policy."""
        return self.of.n_observed(prompt)

    def always(self, prompt: PromptView) -> Positions:
        """What this one and the inner one protect."""
        return np.union1d(super().always(prompt), self.of.always(prompt))

    def score(self, layer: LayerView, prompt: PromptView) -> Scores:
        """The mean over the KV heads, for each of them."""
        rows = self.of.scores(layer, prompt)
        return np.broadcast_to(rows.mean(axis=0), rows.shape)
