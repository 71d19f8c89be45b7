"""One choice for a whole layer, as models of latent attention have to make it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from snapkv_local.policies.around import Around
from snapkv_local.policies.ranked import Ranked
from snapkv_local.policies.rows import Scores
from snapkv_local.policies.snapkv import SnapKV
from snapkv_local.policies.view import LayerView, PromptView


@dataclass(frozen=True)
class Joint(Around):
    """All KV heads of a layer keep the same rows: the mean of their scores decides.

    The engine chooses so where a layer has one row for all heads (MLA).

    Attributes:
        of: the policy that scores the rows.
    """

    name: ClassVar[str] = "joint"
    source: ClassVar[str] = "none: what models of latent attention ask for"

    of: Ranked = field(default=SnapKV())

    def score(self, layer: LayerView, prompt: PromptView) -> Scores:
        """The mean over the KV heads, for each of them."""
        rows = self.of.scores(layer, prompt)
        return np.broadcast_to(rows.mean(axis=0), rows.shape)
