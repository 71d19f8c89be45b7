"""StreamingLLM: the first rows and the last ones, whatever they say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from snapkv_local.declared import option
from snapkv_local.policies.ranked import Ranked
from snapkv_local.policies.rows import Scores, n_prefix
from snapkv_local.policies.view import LayerView, PromptView


@dataclass(frozen=True)
class Streaming(Ranked):
    """Sinks and the most recent rows: the floor that any scorer must beat.

    Xiao et al., "Efficient Streaming Language Models with Attention Sinks", arXiv 2309.17453,
    section 3.2. Rows keep the rotation of their true position, where the paper moves them together.

    Attributes:
        n_sink: first positions that always stay.
    """

    name: ClassVar[str] = "streaming"
    source: ClassVar[str] = "arXiv 2309.17453, section 3.2"

    n_sink: int = option(4)

    def n_observed(self, prompt: PromptView) -> int:
        """None."""
        return 0

    def score(self, layer: LayerView, prompt: PromptView) -> Scores:
        """The later, the better."""
        # counted from the end: float32 is exact up to 2**24
        age = np.arange(1 - n_prefix(prompt), 1, dtype=np.float32)
        return np.repeat(age[None], layer.k.shape[0], axis=0)
