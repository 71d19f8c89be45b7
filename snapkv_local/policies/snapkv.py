"""The paper's SnapKV: each KV head keeps the prefix rows that the prompt's last tokens attend to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from snapkv_local.declared import option
from snapkv_local.policies.ranked import Ranked
from snapkv_local.policies.rows import Positions, Scores, n_prefix
from snapkv_local.policies.scoring import MOST_OWN, Floats, Pool, Reduce, group_mean, votes, weighed
from snapkv_local.policies.view import LayerView, PromptView


@dataclass(frozen=True)
class Voting(Ranked):
    """Query rows vote for prefix positions; votes are pooled, then averaged over a KV head's group.

    Attributes:
        kernel: pooling kernel over positions, odd; 1 turns pooling off.
        own: a position's score is its pooled vote + own * its own vote; 0 in the paper. Ours.
        pool: "avg", "max", or "trim": the mean of the kernel's votes without the greatest of them, so
            that a single peak lifts none of its neighbours. The last is ours.
        reduce: how the query rows vote together: "sum", or "max" to keep what any one query needs
            (DefensiveKV, arXiv 2510.13334).
    """

    kernel: int = option(5, least=1, odd=True)
    own: float = option(0.0, most=MOST_OWN)
    pool: Pool = "avg"
    reduce: Reduce = "sum"

    def voters(self, prompt: PromptView) -> tuple[int, int]:
        """[begin, end) of the query rows that vote."""
        return max(0, prompt.n_prompt - prompt.window), prompt.n_prompt

    def votes(self, layer: LayerView, prompt: PromptView) -> Floats:
        """Votes before pooling: [n_head, n_prefix or more], not negative.

        Rows of the window that come before those that vote count in the pooling, as in the engine.
        """
        return self.counted(layer, prompt)

    def counted(self, layer: LayerView, prompt: PromptView) -> Floats:
        """Votes of the voters, which policies with the same ones share: read only."""
        begin, end = self.voters(prompt)
        n = max(begin, n_prefix(prompt))
        key = ("votes", layer.index, begin, end, n, self.reduce)
        if key not in prompt.cache:
            prompt.cache[key] = votes(layer, begin, end, n, self.reduce)
            prompt.cache[key].setflags(write=False)
        found: Floats = prompt.cache[key]
        return found

    def n_observed(self, prompt: PromptView) -> int:
        """From the first row that votes."""
        return prompt.n_prompt - self.voters(prompt)[0]

    def score(self, layer: LayerView, prompt: PromptView) -> Scores:
        """Pooled votes and own ones, mean over the query heads of a KV head."""
        found = weighed(self.votes(layer, prompt), self.kernel, self.pool, self.own)
        return group_mean(found[:, : n_prefix(prompt)], layer.k.shape[0])


@dataclass(frozen=True)
class SnapKV(Voting):
    """The rows that the prompt's last tokens attend to.

    Li et al., "SnapKV: LLM Knows What You are Looking for Before Generation", arXiv 2404.14469,
    section 4. With equal settings it keeps what the native engine keeps, but for rounding.

    Attributes:
        prefer: "last": the last rows vote, as in the paper; "question": the question's words, as far
            as they are in the prompt's window, and the last rows where there are none in it. A chat
            template's words after the question have no vote then. Ours.
        window: how many of the last rows vote; None for those that stay as the prompt's window. Of
            a larger one all rows stay, as with the engine's window of that size.
    """

    name: ClassVar[str] = "snapkv"
    source: ClassVar[str] = "arXiv 2404.14469, section 4"
    native: ClassVar[bool] = True

    prefer: Literal["last", "question"] = "last"
    window: int | None = option(None, least=1)

    def seeks(self) -> bool:
        """If it prefers the question."""
        return self.prefer == "question"

    def voters(self, prompt: PromptView) -> tuple[int, int]:
        """The question's words in the window, or the last rows; all, of a shorter prompt."""
        if self.seeks() and prompt.question is not None:
            begin, end = prompt.question
            begin = max(begin, n_prefix(prompt))
            if begin < end:
                return begin, end
        window = prompt.window if self.window is None else self.window
        return max(0, prompt.n_prompt - window), prompt.n_prompt

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
