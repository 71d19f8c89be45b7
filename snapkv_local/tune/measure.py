"""Scores of trials on documents, and what they cost in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from snapkv_local.eval.case import Case
from snapkv_local.eval.engine import Engine
from snapkv_local.eval.scores import Logits, Seen, measure
from snapkv_local.tune.choose import Trial, choose
from snapkv_local.tune.documents import Document

Scores = dict[str, float]

NO_LOSS: Scores = {"kl": 0.0, "top1": 1.0}


@dataclass
class Bench:
    """Measures trials on cases; each once.

    Attributes:
        engine: with cells for the whole prompt and a vault.
        window: that the engine was made with.
        clock: seconds.
        found: scores by trial and id of the case.
    """

    engine: Engine
    window: int
    clock: Callable[[], float] = time.monotonic
    found: dict[Trial, dict[str, Scores]] = field(default_factory=dict)
    _prompt: tuple[int, ...] = ()
    # seconds by document and case, the slowest
    _prefills: dict[str, dict[str, float]] = field(default_factory=dict)
    _seconds: float = 0.0  # of choosing, keeping and scoring
    _n_trials: int = 0

    def visit(self, document: Document, trials: Iterable[Trial]) -> None:
        """Measure what is not measured yet on the cases of a document."""
        wanted = list(trials)
        for case in document.cases:
            missing = []
            for trial in wanted:
                scores = self.found.setdefault(trial, {})
                if trial.budget >= len(case.prompt):
                    scores[case.id] = NO_LOSS  # nothing is evicted
                elif case.id not in scores:
                    missing.append(trial)
            if missing:
                self._measure(case, missing)

    def _measure(self, case: Case, trials: Sequence[Trial]) -> None:
        started = self.clock()
        if case.prompt == self._prompt:
            self.engine.keep(None)
        else:
            self._prompt = ()
            self.engine.prefill(list(case.prompt))
            self._prompt = case.prompt
        full = self._score(case, is_full=True)
        prefilled = self.clock()
        known = self._prefills.setdefault(case.document, {})
        known[case.id] = max(known.get(case.id, 0.0), prefilled - started)

        layers = self.engine.layer_views()
        for trial, ids in choose(layers, len(case.prompt), self.window, trials):
            self.engine.keep(ids)
            scores = measure(self._score(case), full)
            self.found[trial][case.id] = {name: scores[name] for name in NO_LOSS}
        self._seconds += self.clock() - prefilled
        self._n_trials += len(trials)

    def _score(self, case: Case, is_full: bool = False) -> Seen:
        # the last gold token is predicted, and not fed
        logits: Logits = self.engine.score([*case.after, *case.gold[:-1]])[-len(case.gold) :]
        return Seen.of(logits, case.gold, is_full)

    def expected(self, documents: Iterable[Document], n_trials: int) -> float:
        """Seconds that so many trials on documents will take, from what others took."""
        known = {name: sum(of_it.values()) for name, of_it in self._prefills.items()}
        other = max(known.values(), default=0.0)
        per_trial = self._seconds / max(1, self._n_trials)
        return sum(
            known.get(document.id, other) + n_trials * per_trial * len(document.cases)
            for document in documents
        )

    def mean(self, trial: Trial, name: str, documents: Iterable[Document]) -> float | None:
        """Mean of a score over all cases of documents; None if some are not measured."""
        scores = self.found.get(trial, {})
        ids = [case.id for document in documents for case in document.cases]
        if not ids or not all(i in scores for i in ids):
            return None
        return sum(scores[i][name] for i in ids) / len(ids)
