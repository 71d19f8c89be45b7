"""What policies have in common whose query rows vote for the rows that stay."""

from __future__ import annotations

from dataclasses import dataclass

from snapkv_local.declared import option
from snapkv_local.policies.ranked import Ranked
from snapkv_local.policies.rows import Scores, n_prefix
from snapkv_local.policies.scoring import (
    INSTEAD,
    MOST_SELF_WEIGHT,
    Aggregation,
    Floats,
    Pooling,
    group_mean,
    votes,
    weighed,
)
from snapkv_local.policies.view import LayerView, PromptView


@dataclass(frozen=True)
class Voting(Ranked):
    """Query rows vote for prefix positions; votes are pooled, then averaged over a KV head's group.

    Attributes:
        kernel_size: pooling kernel over positions, odd; 1 turns pooling off.
        self_weight: a position's score is its pooled vote + self_weight * its own vote; 0 in the
            paper. Ours.
        pooling: "avg", "max", or "nosink": the mean, in which the prompt's first position has no
            vote, so that an attention sink lifts none of its neighbours. The last is ours.
        aggregation: how the query rows vote together: "sum", or "max" to keep what any one query
            needs (DefensiveKV, arXiv 2510.13334).
    """

    kernel_size: int = option(5, least=1, odd=True)
    self_weight: float = option(0.0, most=MOST_SELF_WEIGHT)
    pooling: Pooling = option("avg", instead=INSTEAD)
    aggregation: Aggregation = "sum"

    def voters(self, prompt: PromptView) -> tuple[int, int]:
        """[begin, end) of the query rows that vote."""
        return max(0, prompt.n_prompt - prompt.window_size), prompt.n_prompt

    def votes(self, layer: LayerView, prompt: PromptView) -> Floats:
        """Votes before pooling: [n_head, n_prefix or more], not negative.

        Rows of the window that come before those that vote count in the pooling, as in the engine.
        """
        return self.counted(layer, prompt)

    def counted(self, layer: LayerView, prompt: PromptView) -> Floats:
        """Votes of the voters, which policies with the same ones share: read only."""
        begin, end = self.voters(prompt)
        n = max(begin, n_prefix(prompt))
        key = ("votes", layer.index, begin, end, n, self.aggregation)
        if key not in prompt.cache:
            prompt.cache[key] = votes(layer, begin, end, n, self.aggregation)
            prompt.cache[key].setflags(write=False)
        found: Floats = prompt.cache[key]
        return found

    def n_observed(self, prompt: PromptView) -> int:
        """From the first row that votes."""
        return prompt.n_prompt - self.voters(prompt)[0]

    def score(self, layer: LayerView, prompt: PromptView) -> Scores:
        """Pooled votes and own ones, mean over the query heads of a KV head."""
        found = weighed(self.votes(layer, prompt), self.kernel_size, self.pooling, self.self_weight)
        return group_mean(found[:, : n_prefix(prompt)], layer.k.shape[0])
