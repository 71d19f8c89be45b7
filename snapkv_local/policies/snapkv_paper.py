"""The paper's SnapKV: each KV head keeps the prefix rows that the prompt's last tokens attend to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from snapkv_local.declared import option
from snapkv_local.policies.rows import Positions, n_prefix
from snapkv_local.policies.scoring import Floats
from snapkv_local.policies.view import LayerView, PromptView
from snapkv_local.policies.voting import Voting

# last rows that vote where there is no question
DEFAULT_VOTERS = 16


@dataclass(frozen=True)
class SnapKVPaper(Voting):
    """The rows that the prompt's last tokens attend to, in the paper's form.

    Li et al., "SnapKV: LLM Knows What You are Looking for Before Generation", arXiv 2404.14469,
    section 4. With equal settings it keeps what the native engine keeps, but for rounding.

    Attributes:
        observation: the observation window: how many of the last rows vote, or "window" for those
            that stay as the prompt's window, as in the paper. Of a larger one all rows stay, as with
            the engine's window of that size. "question": the question's words, as far as they are in
            the prompt's window, and DEFAULT_VOTERS rows where there are none in it. A chat template's
            words after the question have no vote then. Ours.
    """

    name: ClassVar[str] = "snapkv-paper"
    source: ClassVar[str] = "arXiv 2404.14469, section 4"
    native: ClassVar[bool] = True

    observation: int | Literal["question", "window"] = option("window", least=1)

    def seeks(self) -> bool:
        """If the question's words vote."""
        return self.observation == "question"

    def voters(self, prompt: PromptView) -> tuple[int, int]:
        """The question's words in the window, or the last rows; all, of a shorter prompt."""
        if self.seeks() and prompt.question is not None:
            begin, end = prompt.question
            begin = max(begin, n_prefix(prompt))
            if begin < end:
                return begin, end
        if self.observation == "question":
            n_voters = min(DEFAULT_VOTERS, prompt.window_size)
        else:
            n_voters = prompt.window_size if self.observation == "window" else self.observation
        return max(0, prompt.n_prompt - n_voters), prompt.n_prompt

    def votes(self, layer: LayerView, prompt: PromptView) -> Floats:
        """Of all positions before the rows that vote, as in the engine; their own get none."""
        begin, _ = self.voters(prompt)
        found = self.counted(layer, prompt)
        if found.shape[1] > begin:
            found = found.copy()
            found[:, begin:] = 0
        return found

    def always(self, prompt: PromptView) -> Positions:
        """Those of Ranked, and a window that is larger than the prompt's."""
        begin, _ = self.voters(prompt)
        return np.union1d(super().always(prompt), np.arange(begin, n_prefix(prompt)))
