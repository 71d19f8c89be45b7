"""How much a search tries: the settings of its rounds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

from snapkv_local.config import DEFAULT_VOTERS
from snapkv_local.policies.scoring import Pool, Reduce
from snapkv_local.tune.choose import By, Setting

KERNELS = (1, 5, 13, 21, 31)
WINDOWS = (16, 32)
VOTERS = (0, 32)  # the question's words, or the paper's window
# pooling and the weight of a row's own vote, which go together: the default, and the paper's two
POOLS: tuple[tuple[Pool, float], ...] = (
    (Setting.pool, Setting.own),
    ("avg", 0.0),
    ("max", 0.0),
)
REDUCES: tuple[Reduce, ...] = ("sum", "max")
SINKS = (0, 4)
POLICIES: tuple[By, ...] = ("value", "sentence")


@dataclass(frozen=True)
class Breadth:
    """How much is tried.

    Attributes:
        kernels, windows, voters: all are tried first that go together.
        shares: of the prompt, budgets that this is done at.
        is_crossed: pooling, votes and sinks in all combinations, or one change at a time.
        policies: that choose in the engine's place.
        n_budgets: at which these are tried.
        n_narrow: budgets that each round of narrowing tries.
    """

    kernels: tuple[int, ...]
    windows: tuple[int, ...]
    voters: tuple[int, ...]
    shares: tuple[float, ...]
    is_crossed: bool
    policies: tuple[By, ...]
    n_budgets: int
    n_narrow: int

    def first(self) -> list[Setting]:
        """Settings of the first round, the default among them."""
        every = product(self.kernels, self.windows, self.voters)
        found = [Setting(kernel=k, window=w, voters=v) for k, w, v in every if v <= w]
        return list(dict.fromkeys([Setting(), *found]))

    def second(self, best: Setting) -> list[Setting]:
        """Those of the second round."""
        base = (best.pool, best.own), best.reduce, best.sinks
        pools = POOLS if best.kernel > 1 else base[:1]
        every = product(pools, REDUCES, SINKS)
        return [
            replace(best, pool=pool[0], own=pool[1], reduce=reduce, sinks=sinks)
            for pool, reduce, sinks in every
            if self.is_crossed
            or sum(a != b for a, b in zip((pool, reduce, sinks), base, strict=True)) <= 1
        ]

    def third(self, best: Setting) -> list[Setting]:
        """Those of the third round: the last tokens vote, or another policy has the best one's fields."""
        last = replace(best, voters=DEFAULT_VOTERS)
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


WIDE = Breadth(KERNELS, WINDOWS, VOTERS, (1 / 32, 1 / 8, 1 / 2), True, POLICIES, 3, 7)
NARROW = Breadth((5, 13, 31), (32,), (0,), (1 / 8, 1 / 2), False, (), 1, 3)
