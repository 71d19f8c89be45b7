"""Whose turn it is with a native context that several threads use, each with a sequence of its own."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

# seconds between two looks at whether one who waits has to go on waiting
_LOOK_EVERY = 0.1


class Gate:
    """Lets one thread at a time into the native context; `with gate:` for each call, or some.

    A prefill takes many seconds, in chunks. Between two of them others may come in: so a prompt that
    is long does not hold up those that decode, and they do not hold it up for longer than its own
    chunks take. Of prefills there is one at a time.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._blocked: set[int] = set()  # threads that want to come in
        self._prefilling: int | None = None  # the thread that does
        self._queue: deque[int] = deque()  # threads that want to, in their order
        self._gives_way = False
        self._resumed = 0.0  # when the prefill's chunk began
        self._owed = 0.0  # seconds that a prefill owes to others
        # sequences that decode together: those of the last step, less those that have ended
        self.decoding: set[int] = set()
        self.seconds_step = 0.0  # that the last step took
        self.n_steps = 0

    def __enter__(self) -> Self:
        if not self._lock.acquire(blocking=False):
            me = threading.get_ident()
            self._blocked.add(me)
            try:
                self._lock.acquire()
            finally:
                self._blocked.discard(me)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._gives_way:
            self._changed.notify_all()
        self._lock.release()

    def wait(self, until: Callable[[], bool], seconds: float) -> bool:
        """Let others in until something is so, or the time is over; whether it is. Called within."""
        return self._changed.wait_for(until, seconds)

    def notify(self) -> None:
        """Something has changed that others may wait for. Called within."""
        self._changed.notify_all()

    @contextmanager
    def prefill(self, poll: Callable[[], object]) -> Iterator[None]:
        """While open, this thread's prefill is the one.

        Args:
            poll: called now and then while another one has to end first; what it raises ends the wait.
        """
        me = threading.get_ident()
        with self:
            if self._prefilling == me:
                yield
                return
            self._queue.append(me)
            try:
                while self._prefilling is not None or self._queue[0] != me:
                    self._changed.wait(_LOOK_EVERY)
                    poll()
                self._prefilling = me
            finally:
                self._queue.remove(me)
            self._resumed, self._owed = time.monotonic(), 0.0
            try:
                yield
            finally:
                self._prefilling = None
                self._changed.notify_all()

    def give_way(self) -> None:
        """Between two chunks: let others in, if there are any, for as long as the chunks took."""
        if self._prefilling != threading.get_ident():
            return
        began = time.monotonic()
        self._owed += began - self._resumed
        if self._is_wanted() and self._owed >= self.seconds_step:
            self._gives_way, n_steps = True, self.n_steps
            try:
                self.wait(lambda: not self._is_wanted(), self._owed)
            finally:
                self._gives_way = False
            if n_steps == self.n_steps:  # whoever decoded before does not any more
                self.decoding.clear()
            self._resumed = time.monotonic()
            self._owed = max(0.0, self._owed - (self._resumed - began))
            return
        if not self._is_wanted():  # nobody saves up for later
            self._owed = min(self._owed, self.seconds_step)
        self._resumed = began

    def _is_wanted(self) -> bool:
        return bool(self._blocked or self.decoding)
