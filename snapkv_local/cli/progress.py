"""How far a long command is, on stderr: bars on a terminal, and lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from snapkv_local.models.resolve import resolve
from snapkv_local.report.units import duration, size

if TYPE_CHECKING:
    from typing_extensions import Self

    from snapkv_local.eval.runner import Evaluation
    from snapkv_local.llama.llama import Llama

EVERY = 5.0  # seconds between lines


@dataclass(frozen=True)
class _State:
    """What is done, since when, and what was done then and when this was told."""

    stage: str
    started: float
    first: float = 0
    told: float = 0
    done: float | None = None
    total: float | None = None
    shown: str = ""


class Lines:
    """While open, a line every few seconds of what is done and what is left; none on a terminal.

    A thread writes them, so that there are some while native code runs.

    Args:
        stage: what is done first.
        clock: seconds.
        every: seconds between lines.
    """

    def __init__(
        self, stage: str, *, clock: Callable[[], float] = time.monotonic, every: float = EVERY
    ) -> None:
        self.clock = clock
        self.every = every
        self._state = _State(stage, clock())
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        self._state = _State(self._state.stage, self.clock())
        self._stream = sys.stderr
        if not self._stream.isatty():
            # one of its own: llama_cpp points stderr elsewhere while a model is loaded
            with contextlib.suppress(OSError, ValueError):
                self._descriptor = os.dup(self._stream.fileno())
            thread = threading.Thread(target=self._run, daemon=True)
            # where memory is so short, the command says it and not its progress
            with contextlib.suppress(RuntimeError, MemoryError):
                thread.start()
                self._thread = thread
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """No more lines."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def update(
        self,
        stage: str,
        done: float | None = None,
        total: float | None = None,
        shown: str = "",
    ) -> None:
        """What the next line says.

        Args:
            stage: what is done now; what is left is told from the time that this stage took.
            done: of the stage; None if it is not known.
            total: of the stage; None if it is not known.
            shown: done and total for people.
        """
        old, now = self._state, self.clock()
        goes_on = stage == old.stage and old.done is not None
        started, first = (old.started, old.first) if goes_on else (now, done or 0)
        self._state = _State(stage, started, first, now, done, total, shown)

    def line(self) -> str:
        """What is done, how long it took, and how long the rest takes."""
        now, state = self.clock(), self._state
        said = f"{state.stage}: {state.shown}, " if state.shown else f"{state.stage}: "
        said += f"{duration(now - state.started)} so far"
        if state.done is None or state.total is None or state.done <= state.first:
            return said
        each = (state.told - state.started) / (state.done - state.first)
        left = each * (state.total - state.done) - (now - state.told)
        return f"{said}, about {duration(max(left, 0))} left"

    def _run(self) -> None:
        while not self._ended.wait(self.every):
            try:
                self._write(self.line() + "\n")
            except (OSError, ValueError, MemoryError):  # nobody reads it any more, or none is left
                return

    def _write(self, text: str) -> None:
        if self._descriptor is not None:
            os.write(self._descriptor, text.encode())
        else:
            self._stream.write(text)
            self._stream.flush()


def find_model(model: str) -> Path:
    """As models.resolve(), with lines about a download.

    Raises:
        ModelFileError: as models.resolve().
    """
    with Lines(f"looking for {model}") as lines:

        def downloaded(name: str, done: int, total: int | None) -> None:
            of = "" if total is None else f" of {size(total)}"
            lines.update(f"downloading {name}", done, total, size(done) + of)

        # on a terminal the hub's own bar does it
        return resolve(model, None if sys.stderr.isatty() else downloaded)


class PrefillBar:
    """While open, shows how far a Llama's prefill is: a bar on a terminal, lines elsewhere.

    Args:
        then: what follows the prefill, for the lines.
    """

    def __init__(self, llm: Llama, then: str = "answering") -> None:
        self.llm = llm
        self.then = then
        self.console = Console(stderr=True)
        self.progress: Progress | None = None
        self.lines = Lines("reading the prompt")
        self.n_said = 0

    def __enter__(self) -> PrefillBar:
        self.llm.prefill_progress = self.update
        self.lines.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.llm.prefill_progress = None
        self.close()

    def update(self, done: int, total: int) -> None:
        """Called by the prefill; done and total are token passes through layer groups."""
        if done < total:
            stage = f"reading {self.llm.n_prompt:,} tokens"
            self.lines.update(stage, done, total, f"{done / total:.0%}")
        else:
            self.lines.update(self.then)
        if not self.console.is_terminal:
            return
        if self.progress is None:
            self.progress = Progress(
                TextColumn("reading {task.fields[n_prompt]:,} tokens"),
                BarColumn(),
                TextColumn("{task.percentage:3.0f}%  {task.fields[speed]:,.0f} tokens/s "),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self.task = self.progress.add_task(
                "", total=total, n_prompt=self.llm.n_prompt, speed=0.0
            )
            self.started = time.monotonic()
            self.progress.start()
        seconds = max(time.monotonic() - self.started, 1e-6)
        speed = self.llm.n_prompt * done / total / seconds
        self.progress.update(self.task, completed=done, speed=speed)
        if done >= total:
            self._close_bar()

    def said(self, most: int) -> None:
        """A token of an answer that nobody sees yet; there are `most` of them at most."""
        self._close_bar()
        self.n_said += 1
        shown = f"{self.n_said:,} of at most {most:,} tokens"
        self.lines.update("answering", self.n_said, most, shown)

    def close(self) -> None:
        """Take the bar off the screen, and write no more lines."""
        self._close_bar()
        self.lines.close()

    def _close_bar(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


class CasesBar:
    """How far an evaluation is, by cases."""

    def __init__(self, evaluation: Evaluation) -> None:
        n_steps = len(evaluation.steps())
        n_done = len(evaluation.record.data["cases"])
        self.n_steps, self.n_done = n_steps, 0
        self.lines = Lines("measuring")
        console = Console(stderr=True)
        if n_done:
            console.print(f"Going on with a record of {n_done} cases", highlight=False)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("loading the model", total=n_steps)

    def __enter__(self) -> Self:
        self.progress.start()
        self.lines.__enter__()
        self.lines.update("measuring", 0, self.n_steps, f"0 of {self.n_steps:,} cases")
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()
        self.lines.close()

    def done(self, kv_type: str, case: Any) -> None:
        """A case is done with a type of cache."""
        self.n_done += 1
        shown = f"{self.n_done:,} of {self.n_steps:,} cases, the last {case.id}, {kv_type}"
        self.lines.update("measuring", self.n_done, self.n_steps, shown)
        self.progress.update(self.task, advance=1, description=f"{case.id}, {kv_type}")
