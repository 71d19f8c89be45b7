"""How much a search tries: the settings of its rounds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

from snapkv_local.policies.scoring import Aggregation, Pooling
from snapkv_local.policies.snapkv_paper import DEFAULT_VOTERS
from snapkv_local.tune.choose import By, Setting

KERNELS = (1, 5, 13, 21, 31)
WINDOWS = (16, 32)
OBSERVATIONS = (0, 32)  # the question's words, or the paper's window
# pooling and the weight of a row's own vote, which go together: the default's, and the paper's two
POOLS: tuple[tuple[Pooling, float], ...] = (
    (Setting.pooling, Setting.self_weight),
    ("avg", 0.0),
    ("max", 0.0),
)
AGGREGATIONS: tuple[Aggregation, ...] = ("sum", "max")
SINKS = (0, 4)
POLICIES: tuple[By, ...] = ("value", "sentence")


@dataclass(frozen=True)
class Breadth:
    """How much is tried.

    Attributes:
        kernels, windows, observations: all are tried first that go together.
        shares: of the prompt, budgets that this is done at.
        is_crossed: pooling, votes and sinks in all combinations, or one change at a time.
        policies: that choose in the engine's place.
        n_budgets: at which these are tried.
        n_narrow: budgets that each round of narrowing tries.
    """

    kernels: tuple[int, ...]
    windows: tuple[int, ...]
    observations: tuple[int, ...]
    shares: tuple[float, ...]
    is_crossed: bool
    policies: tuple[By, ...]
    n_budgets: int
    n_narrow: int

    def first(self) -> list[Setting]:
        """Settings of the first round, the default among them."""
        every = product(self.kernels, self.windows, self.observations)
        found = [
            Setting(kernel_size=k, window_size=w, observation=v) for k, w, v in every if v <= w
        ]
        return list(dict.fromkeys([Setting(), *found]))

    def second(self, best: Setting) -> list[Setting]:
        """Those of the second round."""
        base = (best.pooling, best.self_weight), best.aggregation, best.n_sink
        pools = POOLS if best.kernel_size > 1 else base[:1]
        every = product(pools, AGGREGATIONS, SINKS)
        return [
            replace(
                best,
                pooling=pooling[0],
                self_weight=pooling[1],
                aggregation=aggregation,
                n_sink=n_sink,
            )
            for pooling, aggregation, n_sink in every
            if self.is_crossed
            or sum(a != b for a, b in zip((pooling, aggregation, n_sink), base, strict=True)) <= 1
        ]

    def third(self, best: Setting) -> list[Setting]:
        """Those of the third round: the last tokens vote, or another policy has the best one's fields."""
        last = replace(best, observation=DEFAULT_VOTERS)
        others = (replace(best, by=policy) for policy in self.policies)
        return list(dict.fromkeys([best, last, *others]))

    def most_trials(self) -> tuple[int, int, int, int]:
        """Trials of the four rounds, at most."""
        return (
            len(self.first()) * len(self.shares),
            len(self.second(Setting())) * self.n_budgets,
            len(self.third(Setting())) * self.n_budgets,
            self.n_narrow,
        )


WIDE = Breadth(KERNELS, WINDOWS, OBSERVATIONS, (1 / 32, 1 / 8, 1 / 2), True, POLICIES, 3, 7)
NARROW = Breadth((5, 13, 31), (32,), (0,), (1 / 8, 1 / 2), False, (), 1, 3)
