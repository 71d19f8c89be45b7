"""Runs cases: one prefill for each prompt and type of cache, then all cells from the same rows."""

from __future__ import annotations

import math
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import groupby, repeat
from pathlib import Path

import numpy as np

from snapkv_local.errors import ConfigError
from snapkv_local.eval.case import Case
from snapkv_local.eval.cell import FULL, REFERENCE, Cell, kv_bytes
from snapkv_local.eval.engine import Chooser, Engine, Ids
from snapkv_local.eval.record import Record
from snapkv_local.eval.scores import Logits, Seen, measure
from snapkv_local.eval.settings import Settings
from snapkv_local.plan.layers import KvType, cached_layers
from snapkv_local.plan.model import PlannedModel
from snapkv_local.policies.exact import Exact
from snapkv_local.policies.recall import Recall
from snapkv_local.policies.selective import Selective
from snapkv_local.policies.view import LayerView

# these say how a prompt is evaluated, and are prefilled anew
_OF_ENGINE = (Exact, Selective, Recall)

# called with the type of cache and a case, when the case is done in it
Done = Callable[[KvType, Case], object]


@dataclass(frozen=True)
class Needs:
    """What a model must be loaded with.

    Attributes:
        n_ctx: tokens of the longest case, answer included, or of the longest prompt and its repetition.
        n_cells: of the longest prompt, and its repetition where a policy repeats it.
        decode_cells: most tokens after a prompt.
        n_observed: query rows that some policy looks at.
    """

    n_ctx: int
    n_cells: int
    decode_cells: int
    n_observed: int

    @classmethod
    def of(cls, settings: Settings, cases: Sequence[Case], policies: Sequence[Chooser]) -> Needs:
        """Of all cases.

        Raises:
            ConfigError: a policy cannot work on a case, such as one that needs a question, or a
                budget does not hold what a policy always keeps.
        """
        observed = []
        for case in cases:
            view = settings.view(case)
            for policy in policies:
                observed.append(policy.n_observed(view))
                if policy.repeats():
                    observed.append(case.n_repeated)
                _check_budgets(settings, case, policy.spec, len(policy.always(view)))
        repeats = any(policy.repeats() for policy in policies)
        n_cells = max(len(case.prompt) + repeats * case.n_repeated for case in cases)
        return cls(
            n_ctx=max(n_cells, *(len(case.prompt) + case.n_after for case in cases)),
            n_cells=n_cells,
            decode_cells=max(case.n_after for case in cases),
            n_observed=max(observed, default=0),
        )


@dataclass
class Evaluation:
    """Cases and cells to go through.

    Attributes:
        settings: which cells there are.
        cases: to run, those of a document together.
        policies: by their texts.
        model: what a row takes follows from it.
        open_engine: loads the model with a type of cache.
        record: gets the scores.
        threads: that choose rows, each of a layer.
    """

    settings: Settings
    cases: Sequence[Case]
    policies: Mapping[str, Chooser]
    model: PlannedModel
    open_engine: Callable[[KvType], Engine]
    record: Record
    threads: int = 1
    _references: _References = field(init=False, repr=False)

    def steps(self) -> list[tuple[KvType, Case]]:
        """What is left to do, in order: all of a task and length, one type of cache after the other.

        The reference comes first, as all others need it.
        """
        cells = self.settings.cells()
        kv_types = dict.fromkeys(cell.kv_type for cell in cells)
        found = []
        for _, group in groupby(self.cases, key=lambda case: (case.task, case.length)):
            cases = list(group)
            for kv_type in kv_types:
                needed = cells if kv_type == REFERENCE.kv_type else _of(cells, kv_type)
                found += [(kv_type, c) for c in cases if self.record.missing(c, needed)]
        return found

    def run(self, done: Done, seconds: float = math.inf) -> None:
        """Do what is left; the record is written after each case.

        Args:
            done: called after each case.
            seconds: after which no other prompt is begun.
        """
        end = time.monotonic() + seconds
        with tempfile.TemporaryDirectory(prefix="snapkv-eval-") as folder:
            self._references = _References(Path(folder))
            for kv_type, steps in groupby(self.steps(), key=lambda step: step[0]):
                with closing(self.open_engine(kv_type)) as engine:
                    cases = (case for _, case in steps)
                    for _, group in groupby(cases, key=lambda case: case.prompt):
                        if time.monotonic() >= end:
                            return
                        self._run(engine, kv_type, list(group), done)

    def _run(self, engine: Engine, kv_type: KvType, group: list[Case], done: Done) -> None:
        """Cases of one prompt."""
        all_cells = _of(self.settings.cells(), kv_type)
        cells = [cell for cell in all_cells if not self._is_prefill(cell)]
        fulls = []
        with self._timed("prefill"):
            engine.prefill(list(group[0].prompt))
        wanted = [c for c in cells if any(self.record.missing(case, [c]) for case in group)]
        kept = self._choose(engine, kv_type, group[0], wanted)
        for i, case in enumerate(group):
            if i > 0:
                engine.select_rows(None)
            seen = self._score(engine, case, is_full=True)
            if kv_type == REFERENCE.kv_type:
                full = seen
                if any(cell.kv_type != kv_type for cell in self.settings.cells()):
                    self._references.put(case, seen)
            else:
                full = self._references.get(case)
            fulls.append(full)
            for cell in self.record.missing(case, cells):
                ids, n_bytes = kept[cell]
                if not cell.is_full:
                    with self._timed("keep"):
                        engine.select_rows(ids)
                    seen = self._score(engine, case)
                with self._timed("measure"):
                    self.record.add(case, cell, n_bytes, measure(seen, full))
            self.record.save()
        for cell in all_cells:
            if self._is_prefill(cell):
                self._prefill_anew(engine, cell, group, fulls)
        for case in group:
            done(kv_type, case)

    def _is_prefill(self, cell: Cell) -> bool:
        """Does it say how a prompt is evaluated, and not only which rows stay?"""
        return isinstance(self.policies.get(cell.policy), _OF_ENGINE)

    def _prefill_anew(
        self, engine: Engine, cell: Cell, group: Sequence[Case], fulls: Sequence[Seen]
    ) -> None:
        """Score cases of one prompt after a prefill that is the cell's own."""
        policy = self.policies[cell.policy]
        assert isinstance(policy, _OF_ENGINE)
        cases = [
            (c, f) for c, f in zip(group, fulls, strict=True) if self.record.missing(c, [cell])
        ]
        if not cases:
            return
        view = self.settings.view(group[0])

        def prefill() -> dict[str, float]:
            with self._timed(f"prefill {cell.policy}"):
                prompt = list(group[0].prompt)
                began = time.process_time()
                stats = engine.prefill_with(prompt, cell.budget, policy.settings(), view)
                seconds = time.process_time() - began
            names = ("n_selected", "n_layer_all", "settled", "layer_work", "seconds_select")
            found = {name: round(getattr(stats, name), 6) for name in names}
            return {"cpu_seconds": round(seconds, 6), **found}

        figures = prefill()
        held = [min(cell.budget, view.n_prompt)] * len(cached_layers(self.model))
        n_bytes = kv_bytes(self.model, cell.kv_type, view.n_prompt, held)
        # its rows change with the answer's tokens, between two of them
        recalls = isinstance(policy, Recall)
        for i, (case, full) in enumerate(cases):
            if i > 0 and recalls:
                prefill()
            engine.rewind()
            seen = self._score(engine, case, one_by_one=recalls)
            with self._timed("measure"):
                self.record.add(case, cell, n_bytes, measure(seen, full), figures)
        self.record.save()

    def _choose(
        self, engine: Engine, kv_type: KvType, case: Case, cells: Sequence[Cell]
    ) -> dict[Cell, tuple[Ids | None, int]]:
        """For each cell the rows that it keeps, and their bytes."""
        view = self.settings.view(case)
        n_prompt, window_size = view.n_prompt, view.window_size
        n_prefix = n_prompt - window_size
        found: dict[Cell, tuple[Ids | None, int]] = {}
        layers = None
        for cell in cells:
            n_rows = cell.budget - window_size
            if cell.policy == FULL or n_rows >= n_prefix:
                found[cell] = None, kv_bytes(self.model, kv_type, n_prompt, None)
                continue
            if layers is None:
                layers = self._views(engine, case, cells)
            policy = self.policies[cell.policy]
            with self._timed(f"select {cell.policy}"):
                rows = policy.rows(n_rows, layers, view)
                # NumPy lets other threads run while it computes
                with ThreadPoolExecutor(self.threads) as pool:
                    ids = list(pool.map(policy.select, layers, repeat(view), rows))
            held = [n + window_size for n in rows]
            found[cell] = ids, kv_bytes(self.model, kv_type, n_prompt, held)
        return found

    def _views(self, engine: Engine, case: Case, cells: Sequence[Cell]) -> list[LayerView]:
        """What the policies of the cells see."""
        named = [self.policies[cell.policy] for cell in cells if cell.policy in self.policies]
        if any(policy.repeats() for policy in named):
            with self._timed("repeat"):
                return engine.repeated_views(case.system[1])
        with self._timed("views"):
            return engine.layer_views()

    def _score(
        self, engine: Engine, case: Case, is_full: bool = False, one_by_one: bool = False
    ) -> Seen:
        """one_by_one: as an answer is written, and not many tokens at once."""
        # the last gold token is predicted, and not fed
        tokens, n_gold = [*case.after, *case.gold[:-1]], len(case.gold)
        with self._timed("score"):
            if one_by_one:
                rows = deque((engine.logits_for([t], 1)[0] for t in tokens), maxlen=n_gold)
                logits: Logits = np.stack(rows)
            else:
                logits = engine.logits_for(tokens, n_gold)
        with self._timed("measure"):
            return Seen.of(logits, case.gold, is_full)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.record.spent(what, time.monotonic() - started)


class _References:
    """What the full f16 cache saw, on disk: with large vocabularies it is gigabytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, case: Case, seen: Seen) -> None:
        """Keep it until the end of the run."""
        np.save(self._path(case), seen.log_p)

    def get(self, case: Case) -> Seen:
        """What was kept."""
        return Seen.of(np.load(self._path(case)), case.gold, is_full=True)

    def _path(self, case: Case) -> Path:
        return self.folder / f"{case.digest()}.npy"


def _check_budgets(settings: Settings, case: Case, policy: str, n_always: int) -> None:
    """Refuse a budget that does not hold the rows that always stay."""
    least = n_always + settings.window_size
    # a budget of all rows chooses none
    low = [b for b in settings.budgets if b < min(least, len(case.prompt))]
    if low:
        raise ConfigError(
            f"budget {low[0]}",
            f"does not hold what {policy} always keeps of case {case.id}: {n_always} rows, and the "
            f"window of {settings.window_size}",
            f"give --budgets from {least} on, or protect less",
        )


def _of(cells: Sequence[Cell], kv_type: KvType) -> list[Cell]:
    return [cell for cell in cells if cell.kv_type == kv_type]
