"""Scores of trials on documents, and what they cost in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from snapkv_local.eval.case import Case
from snapkv_local.eval.engine import Engine
from snapkv_local.eval.scores import Logits, Seen, measure
from snapkv_local.policies import PromptView
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
    window_size: int
    clock: Callable[[], float] = time.monotonic
    found: dict[Trial, dict[str, Scores]] = field(default_factory=dict)
    _prompt: tuple[int, ...] = ()
    _document: str = ""
    # seconds until a case can be tried: of a document's first one, and of others, which the vault helps
    _first: list[float] = field(default_factory=list)
    _next: list[float] = field(default_factory=list)
    # of choosing, keeping and scoring
    _seconds: float = 0.0
    _n_trials: int = 0

    def measure(self, case: Case, trials: Iterable[Trial]) -> None:
        """Measure what is not measured yet."""
        missing = []
        for trial in trials:
            scores = self.found.setdefault(trial, {})
            if trial.budget >= len(case.prompt):
                scores[case.id] = NO_LOSS  # nothing is evicted
            elif case.id not in scores:
                missing.append(trial)
        if not missing:
            return
        started = self.clock()
        self._prefill(case)
        full = self._score(case, is_full=True)
        layers = self.engine.layer_views()
        ready = self.clock()
        (self._next if case.document == self._document else self._first).append(ready - started)
        self._document = case.document
        prompt = PromptView(
            len(case.prompt), self.window_size, question=case.question, sentences=case.sentences
        )
        for trial, ids in choose(layers, prompt, missing):
            self.engine.select_rows(ids)
            measured = measure(self._score(case), full)
            self.found[trial][case.id] = {name: measured[name] for name in NO_LOSS}
        self._seconds += self.clock() - ready
        self._n_trials += len(missing)

    def _prefill(self, case: Case) -> None:
        if case.prompt == self._prompt:
            self.engine.select_rows(None)
            return
        self._prompt = ()  # if this fails, the engine holds nothing
        self.engine.prefill(list(case.prompt))
        self._prompt = case.prompt

    def _score(self, case: Case, is_full: bool = False) -> Seen:
        # the last gold token is predicted, and not fed
        logits: Logits = self.engine.logits_for([*case.after, *case.gold[:-1]], len(case.gold))
        return Seen.of(logits, case.gold, is_full)

    def expected(
        self, documents: Sequence[Document], n_trials: int, *, is_warm: bool = False
    ) -> float:
        """Seconds that so many trials on all cases of documents will take, from what others took.

        Args:
            is_warm: the vault still holds one of the documents.
        """
        n_cases = sum(len(document.cases) for document in documents)
        first = max(self._first, default=0.0)
        after = sum(self._next) / len(self._next) if self._next else first
        per_trial = self._seconds / max(1, self._n_trials)
        n_first = len(documents) - is_warm
        return n_first * first + (n_cases - n_first) * after + n_cases * n_trials * per_trial

    def mean(self, trial: Trial, name: str, documents: Iterable[Document]) -> float | None:
        """Mean of a score over all cases of documents; None if some are not measured."""
        scores = self.found.get(trial, {})
        ids = [case.id for document in documents for case in document.cases]
        if not ids or not all(i in scores for i in ids):
            return None
        return sum(scores[i][name] for i in ids) / len(ids)
