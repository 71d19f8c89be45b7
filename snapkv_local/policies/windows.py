"""SnapKV with two windows: the question votes, and so do the prompt's last rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from snapkv_local.declared import option
from snapkv_local.policies.question import question_of
from snapkv_local.policies.rows import n_prefix
from snapkv_local.policies.scoring import Floats, votes
from snapkv_local.policies.view import LayerView, PromptView
from snapkv_local.policies.voting import Voting


@dataclass(frozen=True)
class Windows(Voting):
    """Votes of the question and of the last rows, each window with a weight of its own.

    Of Li et al., arXiv 2404.14469, section 4, with two observation windows. With aggregation="sum" a
    window's votes are its rows' mean, so that a long question does not outvote the end; the windows
    are added up. With aggregation="max" a position has the larger of the two.

    Attributes:
        weight: of the question, from 0 to 1; the last rows have the rest.
        observation: how many of the last rows vote; "window" for those that stay as the prompt's
            window.
    """

    name: ClassVar[str] = "windows"
    source: ClassVar[str] = "arXiv 2404.14469, section 4"

    weight: float = option(0.5, most=1)
    observation: int | Literal["window"] = option("window", least=1)

    def asks(self) -> bool:
        """Yes."""
        return True

    def spans(self, prompt: PromptView) -> tuple[tuple[int, int], tuple[int, int]]:
        """[begin, end) of the question and of the last rows."""
        last = prompt.window_size if self.observation == "window" else self.observation
        return (
            question_of(prompt, self.name),
            (max(0, prompt.n_prompt - last), prompt.n_prompt),
        )

    def voters(self, prompt: PromptView) -> tuple[int, int]:
        """From the first row of the two to the end."""
        return min(begin for begin, _ in self.spans(prompt)), prompt.n_prompt

    def votes(self, layer: LayerView, prompt: PromptView) -> Floats:
        """Both windows' votes together."""
        parts = []
        weights = self.weight, 1 - self.weight
        for weight, (begin, end) in zip(weights, self.spans(prompt), strict=True):
            n = end - begin if self.aggregation == "sum" else 1
            found = votes(layer, begin, end, n_prefix(prompt), self.aggregation)
            parts.append(found * np.float32(weight / n))
        return parts[0] + parts[1] if self.aggregation == "sum" else np.maximum(*parts)
