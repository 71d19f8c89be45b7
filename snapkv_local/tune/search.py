"""The search: kernels and windows, then pooling, votes and sinks, then policies, then the budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from snapkv_local.tune.breadth import NARROW, SINKS, WIDE, Breadth
from snapkv_local.tune.choose import Setting, Trial
from snapkv_local.tune.curve import STEP, between, bracket, few, needed
from snapkv_local.tune.documents import MOST_CASES, Document, Pieces
from snapkv_local.tune.measure import Bench

# called with what is done, and cases done and in all of it
Progress = Callable[[str, int, int], object]

# rows that a policy in Python must do with for each of the engine's, as its prefill takes longer
_WORTH = 0.9
LEAST_BUDGET = 64
N_HELD_OUT = 5  # trials
N_CASES = 3  # of each document, before there are more of them


@dataclass
class Search:
    """Finds a setting and a budget in the time that there is.

    Attributes:
        bench: measures.
        pieces: documents; as many are taken as time allows.
        target: mean KL to the full cache on tuning cases, in nats, that is to be reached.
        seconds: the time box. Two cases of each half are measured whatever they take.
        progress: is told what is done.
    """

    bench: Bench
    pieces: Pieces
    target: float
    seconds: float
    progress: Progress
    clock: Callable[[], float] = time.monotonic
    breadth: Breadth = WIDE
    tuning: tuple[Document, ...] = ()
    held_out: tuple[Document, ...] = ()
    is_finished: bool = False
    is_late: bool = False
    best: Setting = field(default_factory=Setting)
    _started: float = 0.0
    _is_forward: bool = True

    def run(self) -> None:
        """All rounds. After Ctrl-C, report() has what was found until then."""
        self._started = self.clock()
        self._plan()
        most = max(*self.breadth.windows, Setting.window_size) + max(SINKS) + 1
        budgets = few(self.n_prompt, self.breadth.shares, max(LEAST_BUDGET, most))
        first = self.breadth.first()
        self._round("kernels and windows", first, budgets)

        budgets = self._inner(self.breadth.n_budgets)
        self._try("pooling, votes and sinks", self.breadth.second(self.best), budgets)
        budgets = self._below(self.breadth.n_budgets)
        self._try("observation and policies", self.breadth.third(self.best), budgets)
        while (budgets := self._inner(self.breadth.n_narrow)) and self._fits(len(budgets)):
            self._round("the budget", [self.best], budgets)

        self._visit("held-out documents", self.held_out, self.reported())
        self.is_finished = True

    @property
    def n_prompt(self) -> int:
        """Tokens of the shortest prompt of tuning: the budget that keeps everything."""
        return min(len(case.prompt) for document in self.tuning for case in document.cases)

    @property
    def budget(self) -> int | None:
        """The smallest budget that is measured to reach the target; None if none does."""
        if not self.tuning or not (kl := self.curve(self.best)):
            return None
        _, high = bracket(kl, self.target, self.n_prompt)
        return high if high in kl else None

    def curve(self, setting: Setting, name: str = "kl") -> dict[int, float]:
        """Mean of a score over the tuning cases by budget, where all of them are measured."""
        found = {}
        for trial in self.bench.found:
            if trial.setting == setting:
                value = self.bench.mean(trial, name, self.tuning)
                if value is not None and trial.budget < self.n_prompt:
                    found[trial.budget] = value
        return dict(sorted(found.items()))

    def reported(self) -> list[Trial]:
        """What held-out documents are for: the result, the default beside it, budgets around it."""
        kl = self.curve(self.best)
        budget = self.budget or max(kl)
        around = [budget, round(budget / 2 / STEP) * STEP, 2 * budget]
        trials = [Trial(self.best, b) for b in around]
        trials += [Trial(Setting(), b) for b in around[:2]]
        trials = [t for t in trials if t.is_valid and t.budget < self.n_prompt]
        return list(dict.fromkeys(trials))

    def report(self) -> dict[str, Any]:
        """What was found, for JSON."""
        kl, top1 = self.curve(self.best), self.curve(self.best, "top1")
        budget = self.budget
        held_out = [self._scores(t) for t in self.reported()] if self.is_finished else []
        is_known = budget is not None and bool(held_out)
        return {
            "settings": None if budget is None else {"budget": budget, **self.best.to_dict()},
            "target_kl": self.target,
            "finished": self.is_finished,
            "seconds": round(self.clock() - self._started, 1),
            "length": self.pieces.length,
            "n_prompt": self.n_prompt if self.tuning else None,
            "tuning": _count(self.tuning),
            "held_out": _count(self.held_out) if self.is_finished else _count(()),
            "best": self.best.to_dict(),
            "curve": [{"budget": b, "kl": round(kl[b], 6), "top1": round(top1[b], 6)} for b in kl],
            "tried": self._tried(),
            "held_out_scores": held_out,
            "held_out_reached": held_out[0]["kl"] <= self.target if is_known else None,
        }

    def _plan(self) -> None:
        """Measure what one document costs, and take as many documents and cases as fit."""
        first = self.pieces.tuning[0].some(2)
        n_prompt = len(first.cases[0].prompt)
        budgets = few(n_prompt, WIDE.shares, max(LEAST_BUDGET, Setting.window_size + STEP))
        # several, as in the rounds, which count votes once for many trials
        trials = [Trial(Setting(kernel_size=k), b) for k, b in product((5, 31), budgets)]
        self._visit("what a document costs", [first], trials)
        # not all of it: estimates err
        left = 0.8 * self.seconds - (self.clock() - self._started)

        self.breadth = WIDE
        if self._cost(1, N_CASES) > left:
            self.breadth = NARROW
        n = len(self.pieces.tuning)
        while n > 1 and self._cost(n, N_CASES) > left:
            n -= 1
        n_cases = MOST_CASES
        while n_cases > 2 and self._cost(n, n_cases) > left:
            n_cases -= 1
        while any(sum(len(d.cases) for d in half) < 2 for half in self._halves(n, n_cases)):
            n += 1
        self.is_late = self._cost(n, n_cases) > left
        self.tuning, self.held_out = self._halves(n, n_cases)

    def _halves(self, n: int, n_cases: int) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
        """So many documents of each half with so many cases."""
        tuning = tuple(document.some(n_cases) for document in self.pieces.tuning[:n])
        held_out = tuple(document.some(n_cases) for document in self.pieces.held_out[:n])
        return tuning, held_out

    def _cost(self, n: int, n_cases: int) -> float:
        """Seconds of all rounds."""
        tuning, held_out = self._halves(n, n_cases)
        rounds = [
            self.bench.expected(tuning, n_trials, is_warm=True)
            for n_trials in self.breadth.most_trials()
        ]
        return sum(rounds) + self.bench.expected(held_out, N_HELD_OUT)

    def _fits(self, n_trials: int) -> bool:
        """Is there time for another round, with what must come after it?"""
        if n_trials == 0:
            return False
        needs = self.bench.expected(self.tuning, n_trials, is_warm=True)
        needs += self.bench.expected(self.held_out, N_HELD_OUT)
        return self.clock() - self._started + needs <= self.seconds

    def _inner(self, n: int) -> list[int]:
        """Budgets within the bracket of the best setting."""
        low, high = bracket(self.curve(self.best), self.target, self.n_prompt)
        least = self._least()
        return [b for b in between(max(low, least - STEP), high, n) if b >= least]

    def _below(self, n: int) -> list[int]:
        """Up to n budgets below what the best setting needs, the first that would be worth it."""
        most = _WORTH * needed(self.curve(self.best), self.target, self.n_prompt)
        found = {int(most * 0.8**i / STEP) * STEP for i in range(n)}
        return sorted(b for b in found if self._least() <= b < self.n_prompt)

    def _least(self) -> int:
        return max(LEAST_BUDGET, self.best.window_size + max(SINKS) + 1)

    def _try(self, what: str, settings: Sequence[Setting], budgets: Sequence[int]) -> None:
        """A round, if there is time."""
        if self._fits(len(settings) * len(budgets)):
            self._round(what, settings, budgets)

    def _round(self, what: str, settings: Sequence[Setting], budgets: Sequence[int]) -> None:
        trials = [Trial(setting, budget) for setting, budget in product(settings, budgets)]
        trials = [trial for trial in trials if trial.is_valid]
        # the document that the last round ended with is still in the vault
        order = self.tuning if self._is_forward else self.tuning[::-1]
        self._is_forward = not self._is_forward
        is_first = not self.curve(self.best)
        try:
            self._visit(what, order, trials)
        except KeyboardInterrupt:
            if is_first:
                self._take_measured(trials)
                self._choose(settings, budgets)
            raise
        self._choose(settings, budgets)

    def _choose(self, settings: Sequence[Setting], budgets: Sequence[int]) -> None:
        # by what all of them are measured at, lest one with more budgets looks better or worse
        known = [s for s in settings if self.curve(s)]
        if not known:
            return
        self.best = min(
            (s for s in known if s.by == "snapkv"),
            key=lambda s: self._needed(s, budgets),
            default=self.best,
        )
        # not by estimates: a policy in Python must have reached the target with so few rows
        most = _WORTH * needed(self.curve(self.best), self.target, self.n_prompt)
        reached = {s: bracket(self.curve(s), self.target, self.n_prompt)[1] for s in known}
        others = [s for s in known if s.by != "snapkv" and reached[s] <= most]
        self.best = min(others, key=lambda s: reached[s], default=self.best)

    def _take_measured(self, trials: Sequence[Trial]) -> None:
        """Only cases of tuning that all trials are measured on."""
        found = self.bench.found
        documents = []
        for document in self.tuning:
            cases = [c for c in document.cases if all(c.id in found.get(t, {}) for t in trials)]
            if cases:
                documents.append(replace(document, cases=tuple(cases)))
        self.tuning = tuple(documents)

    def _visit(self, what: str, documents: Sequence[Document], trials: Sequence[Trial]) -> None:
        cases = [case for document in documents for case in document.cases]
        for i, case in enumerate(cases):
            self.progress(what, i, len(cases))
            self.bench.measure(case, trials)
        self.progress(what, len(cases), len(cases))

    def _needed(self, setting: Setting, budgets: Sequence[int]) -> tuple[float, float]:
        kl = {b: v for b, v in self.curve(setting).items() if b in budgets}
        return needed(kl, self.target, self.n_prompt), sum(kl.values())

    def _tried(self) -> list[dict[str, Any]]:
        """All settings that were measured, in that order, with their mean KL by budget."""
        settings = dict.fromkeys(trial.setting for trial in self.bench.found)
        known = ((s, self.curve(s)) for s in settings)
        return [
            {**s.to_dict(), "kl": {str(b): round(v, 6) for b, v in kl.items()}}
            for s, kl in known
            if kl
        ]

    def _scores(self, trial: Trial) -> dict[str, Any]:
        """Of a trial on held-out documents."""
        scores = self.bench.found[trial]
        cases = [case for document in self.held_out for case in document.cases]

        def mean(name: str, task: str | None = None) -> float | None:
            values = [scores[c.id][name] for c in cases if task in (None, c.task)]
            return round(sum(values) / len(values), 6) if values else None

        return {
            **trial.setting.to_dict(),
            "budget": trial.budget,
            "is_default": trial.setting == Setting(),
            "kl": mean("kl"),
            "worst_kl": max(scores[c.id]["kl"] for c in cases),
            "top1": mean("top1"),
            "kl_by_task": {t: mean("kl", t) for t in dict.fromkeys(c.task for c in cases)},
        }


def _count(documents: Sequence[Document]) -> dict[str, int]:
    cases = [case for document in documents for case in document.cases]
    return {"documents": len(documents), "cases": len(cases)}
