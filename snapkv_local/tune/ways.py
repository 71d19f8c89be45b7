"""Selective prefills and recall with what a search has found: what they gain, and what they lose.

Neither is exact, and no profile has them: a reader decides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from snapkv_local.errors import ConfigError
from snapkv_local.eval.case import Case
from snapkv_local.eval.engine import Engine
from snapkv_local.eval.scores import Seen, measure
from snapkv_local.policies import PromptView
from snapkv_local.policies.exact import Exact
from snapkv_local.policies.recall import Recall
from snapkv_local.policies.selective import Selective
from snapkv_local.tune.choose import Setting
from snapkv_local.tune.documents import Document

Way = Exact | Selective | Recall
Progress = Callable[[str, int, int], object]

SHARES = (0.1, 0.2, 0.4)
DEPTHS = (Selective.depth, 0.5)
LEAST = 256
EVERY = (8, Recall.every)
# of a prompt's rows: where more go on, nothing is gained
_MOST = 0.8
_N_CASES = 2  # of each document
_SCORES = ("kl", "top1")


def ways_of(setting: Setting, budget: int, n_prompt: int) -> list[Way]:
    """An exact prefill, and what is tried beside it; none for what another policy chooses."""
    if setting.by != "snapkv" or budget >= n_prompt:
        return []
    options: dict[str, Any] = {
        "kernel_size": setting.kernel_size,
        "pooling": setting.pooling,
        "self_weight": setting.self_weight,
        "aggregation": setting.aggregation,
        "n_sink": setting.n_sink,
        "observation": setting.observation or "question",
    }
    tried = [Selective(**options)]
    tried += [
        Selective(share=s, depth=d, least=LEAST, **options) for d, s in product(DEPTHS, SHARES)
    ]
    rows: dict[tuple[float, int], Way] = {}
    for way in tried:
        n_rows = max(round(way.share * n_prompt), way.least, budget)
        if n_rows <= _MOST * n_prompt:
            rows.setdefault((way.depth, n_rows), way)
    recalls = [Recall(every=every, **options) for every in EVERY]
    return [Exact(**options), *rows.values(), *recalls]


@dataclass
class Ways:
    """Measures them on the documents of a search.

    Attributes:
        engine: of the search.
        setting, budget: that it has found.
        target: mean KL to the full cache, in nats.
        tuning, held_out: its documents; a few cases of each are taken, as many as time allows.
        seconds: that there are.
        found: scores by way and id of the case.
        refused: what the engine does not do with this model, and why.
        reason: why nothing is measured; "" if something is.
    """

    engine: Engine
    setting: Setting
    budget: int
    target: float
    tuning: tuple[Document, ...]
    held_out: tuple[Document, ...]
    seconds: float
    progress: Progress
    clock: Callable[[], float] = time.monotonic
    cpu_clock: Callable[[], float] = time.process_time
    found: dict[Way, dict[str, dict[str, float]]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    chosen: tuple[Way, ...] = ()

    def run(self) -> None:
        """Try all on documents of tuning, and the best of each kind on those held out."""
        halves = [
            [case for d in half for case in d.some(_N_CASES).cases] for half in self._halves()
        ]
        n_prompt = min(len(case.prompt) for half in halves for case in half)
        ways = ways_of(self.setting, self.budget, n_prompt)
        if not ways:
            self.reason = "the engine's own policy does not choose the rows, or all of them stay"
            return
        began = self.clock()
        first = halves[0][0]
        self._measure("what a prefill costs", [first], ways)
        cost = (self.clock() - began) / len(ways)
        left = self.seconds - (self.clock() - began)
        # all on one half, and at most four on the other
        n = int(left / (cost * (len(ways) + 4)))
        if n < 1:
            self.found.clear()
            self.reason = "there was no time left: give more --minutes"
            return
        halves = [half[: n + 1] if i == 0 else half[:n] for i, half in enumerate(halves)]
        self._measure("selective prefills and recall", halves[0], ways)
        exact, *others = (way for way in ways if way in self.found)
        self.chosen = tuple(self._best(exact, others, halves[0]))
        shown = [w for w in others if isinstance(w, Selective)][:1]
        self._measure(
            "the same, held out", halves[1], list(dict.fromkeys([exact, *shown, *self.chosen]))
        )

    def report(self) -> dict[str, Any]:
        """For JSON: a row for each way and half that was measured."""
        halves = {"tuning": self.tuning, "held_out": self.held_out}
        rows = {name: list(self._rows(half)) for name, half in halves.items()}
        return {"reason": self.reason or None, "refused": self.refused, **rows}

    def _halves(self) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
        return self.tuning, self.held_out

    def _best(self, exact: Way, others: Sequence[Way], cases: Sequence[Case]) -> Iterator[Way]:
        """The selective prefill that is fastest within the target, and the recall that loses least."""
        within = [
            way
            for way in others
            if isinstance(way, Selective) and self._mean(way, "kl", cases) <= self.target
        ]
        fastest = min(within, key=lambda way: self._mean(way, "seconds", cases), default=None)
        if fastest and self._mean(fastest, "seconds", cases) < self._mean(exact, "seconds", cases):
            yield fastest
        recalls = [way for way in others if isinstance(way, Recall)]
        closest = min(recalls, key=lambda way: self._mean(way, "kl", cases), default=None)
        if closest and self._mean(closest, "kl", cases) < self._mean(exact, "kl", cases):
            yield closest

    def _mean(self, way: Way, name: str, cases: Sequence[Case]) -> float:
        return sum(self.found[way][case.id][name] for case in cases) / len(cases)

    def _rows(self, half: Sequence[Document]) -> Iterator[dict[str, Any]]:
        cases = [case for document in half for case in document.cases]
        base: dict[str, float] = {}
        for way, scores in self.found.items():
            measured = [case for case in cases if case.id in scores]
            if not measured:
                continue
            row = {name: self._mean(way, name, measured) for name in (*_SCORES, "seconds")}
            base = base or row
            yield {
                "policy": way.spec,
                "settings": {} if isinstance(way, Exact) else _differences(way),
                "is_chosen": way in self.chosen,
                "cases": len(measured),
                "kl": round(row["kl"], 6),
                "worst_kl": max(scores[case.id]["kl"] for case in measured),
                "top1": round(row["top1"], 6),
                "lost": round(base["top1"] - row["top1"], 6),
                "layer_work": round(self._mean(way, "layer_work", measured), 4),
                "cpu_seconds": round(row["seconds"], 4),
                "speed": round(base["seconds"] / row["seconds"], 4) if row["seconds"] else None,
            }

    def _measure(self, what: str, cases: Sequence[Case], ways: Sequence[Way]) -> None:
        for i, case in enumerate(cases):
            self.progress(what, i, len(cases))
            missing = [w for w in ways if case.id not in self.found.get(w, {})]
            if missing:
                self._measure_case(case, missing)
        self.progress(what, len(cases), len(cases))

    def _measure_case(self, case: Case, ways: Sequence[Way]) -> None:
        tokens = [*case.after, *case.gold[:-1]]

        def seen(is_full: bool = False) -> Seen:
            logits = self.engine.logits_for(tokens, len(case.gold))
            return Seen.of(logits, case.gold, is_full)

        self.engine.prefill(list(case.prompt))
        full = seen(is_full=True)
        window_size = self.setting.window_size
        view = PromptView(
            len(case.prompt), window_size, question=case.question, sentences=case.sentences
        )
        for way in ways:
            if way.name in self.refused:
                continue
            settings = {**way.settings(), "window_size": window_size}
            began = self.cpu_clock()
            try:
                stats = self.engine.prefill_with(list(case.prompt), self.budget, settings, view)
            except ConfigError as e:
                self.refused[way.name] = str(e)
                continue
            self.engine.rewind()
            scores = measure(seen(), full)
            self.found.setdefault(way, {})[case.id] = {
                **{name: scores[name] for name in _SCORES},
                "layer_work": stats.layer_work,
                "seconds": self.cpu_clock() - began,
            }


def _differences(way: Selective | Recall) -> dict[str, Any]:
    """Settings of SnapKVConfig that it has beside those of the search."""
    return {
        name: value for name, value in way.settings().items() if name not in way.of_the_engine()
    }
