"""Rows drawn by lot: what a budget is worth without any knowledge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from snapkv_local.declared import option
from snapkv_local.policies.ranked import Ranked
from snapkv_local.policies.rows import Scores, n_prefix
from snapkv_local.policies.view import LayerView, PromptView


@dataclass(frozen=True)
class Random(Ranked):
    """Each KV head draws its own rows; smaller budgets keep a part of what larger ones keep.

    Attributes:
        seed: the same rows for the same seed, layer, head and length of the prompt.
    """

    name: ClassVar[str] = "random"
    source: ClassVar[str] = "none: a control, as RandomPress of kvpress 0.5.4"

    seed: int = option(0)

    def n_observed(self, prompt: PromptView) -> int:
        """None."""
        return 0

    def score(self, layer: LayerView, prompt: PromptView) -> Scores:
        """Random numbers."""
        heads = [
            np.random.default_rng([self.seed, layer.index, head, prompt.n_prompt])
            for head in range(layer.k.shape[0])
        ]
        return np.stack([rng.random(n_prefix(prompt), dtype=np.float32) for rng in heads])
