"""Ctrl-C while native code calls back into Python."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def deferred_interrupt() -> Iterator[list[int]]:
    """While open, Ctrl-C is noted in the list; the handler that was there gets it at the end.

    Python would raise KeyboardInterrupt on entry to a callback, before its first statement, where
    ctypes prints and drops it. Signals reach the main thread only; elsewhere this does nothing.
    """
    noted: list[int] = []
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield noted
        return
    signal.signal(signal.SIGINT, lambda number, _frame: noted.append(number))
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, previous)
        if noted:
            previous(noted[0], None)
