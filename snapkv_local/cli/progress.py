"""A progress bar for the prefill, on stderr."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from snapkv_local.llama import Llama


class PrefillBar:
    """While open, shows how far a Llama's prefill is. Silent if stderr is no terminal."""

    def __init__(self, llm: Llama) -> None:
        self.llm = llm
        self.console = Console(stderr=True)
        self.progress: Progress | None = None

    def __enter__(self) -> PrefillBar:
        self.llm.prefill_progress = self.update
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
            self.close()

    def close(self) -> None:
        """Take the bar off the screen."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None
