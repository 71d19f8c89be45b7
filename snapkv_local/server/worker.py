"""The bounded queue, and the threads that answer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from snapkv_local.server.errors import ApiError, from_exception, logger


class Cancelled(Exception):
    """Ends the work of a job whose client has gone."""


@dataclass(frozen=True)
class Progress:
    """How far a prefill is.

    Attributes:
        done, total: in token passes through layer groups.
        n_prompt: tokens of the prompt.
        n_cached: of these, those at the start that are there.
        seconds: since the work began.
    """

    done: int
    total: int
    n_prompt: int = 0
    n_cached: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Began:
    """A prompt is evaluated.

    Attributes:
        n_prompt: its tokens.
        n_cached: of these, those at the start that were there.
        index: of the answer that begins.
        slot: the sequence that answers.
        conversation: the id of the conversation that the answer belongs to.
    """

    n_prompt: int
    n_cached: int
    index: int = 0
    slot: int = 0
    conversation: str = ""


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer, in OpenAI's form.

    Attributes:
        data: with one choice.
        tokens: that came with it.
    """

    data: dict[str, Any]
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class Ended:
    """One answer of a request has ended.

    Attributes:
        index: of the answer.
        prompt: its text, with control words, where the request asks for it.
        n_prompt: its tokens.
        n_cached: of these, those at the start that were there.
        tokens: of the answer.
        reason: "eos", "word" or "limit", in llama-server's words.
        stopped_by: the text of the request's `stop` that ended it, if one did.
        timings: in llama-server's form.
        settings: how tokens were drawn, in llama-server's form.
        slot: the sequence that answered.
    """

    index: int
    prompt: str
    n_prompt: int
    n_cached: int
    tokens: tuple[int, ...]
    reason: str
    stopped_by: str | None
    timings: dict[str, Any]
    settings: dict[str, Any]
    slot: int = 0


@dataclass(frozen=True)
class Failed:
    """The last event of a job that failed."""

    error: ApiError


@dataclass(frozen=True)
class Done:
    """The last event of a job that has answered.

    Attributes:
        usage: in OpenAI's form.
        timings: in llama-server's form.
    """

    usage: dict[str, Any]
    timings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """The one event of a job that answers no chat: JSON."""

    data: dict[str, Any]


Event = Progress | Began | Chunk | Ended | Failed | Done | Found
Work = Callable[["Job"], Iterator[Event]]


class Job:
    """One request, from the event loop that made it to the worker and back.

    Args:
        work: run by a thread of the worker; yields events, the last one Done or Found.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self.ended = False
        self._cancelled: Exception | None = None

    def emit(self, event: Event) -> None:
        """Hand an event to the event loop; from any thread."""
        self.ended = self.ended or isinstance(event, Failed | Done | Found)
        # the loop is closed once the server is down, and then nobody waits
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)

    def cancel(self, reason: Exception | None = None) -> None:
        """End the work at its next step, with this reason if a client is still there to get it."""
        self._cancelled = reason or Cancelled()

    def check(self) -> None:
        """Called by the work at each step.

        Raises:
            Cancelled, ApiError: the job is to end.
        """
        if self._cancelled is not None:
            raise self._cancelled

    def run(self) -> None:
        """Do the work; on a thread of the worker."""
        try:
            self.check()
            for event in self.work(self):
                self.emit(event)
                self.check()
        except Cancelled:
            pass
        except Exception as e:
            self.emit(Failed(from_exception(e)))
        finally:
            # what was raised knows all frames, with what they hold, and one of them is this one's: nothing
            # of it would be free before Python's collector comes to its oldest generation
            self._cancelled = None


class Worker:
    """Runs jobs, in the order in which they came, each on a thread; as many at once as load() says.

    Args:
        max_waiting: jobs that may wait while others run.
        load: run first, on the first thread. Until it returns, jobs wait; it returns how many may run
            at once.
        on_failure: gets what load raises; from the worker's thread.
    """

    def __init__(
        self,
        max_waiting: int,
        load: Callable[[], int],
        on_failure: Callable[[BaseException], object],
    ) -> None:
        self.max_waiting = max_waiting
        self.ready = False
        self._load = load
        self._on_failure = on_failure
        self._waiting: deque[Job] = deque()
        self._running: set[Job] = set()
        self._n_threads = 1
        self._stopping = False
        self._changed = threading.Condition()
        self._threads = [self._thread(self._first)]

    def start(self) -> None:
        """Load, then take jobs."""
        self._threads[0].start()

    @property
    def n_waiting(self) -> int:
        """Jobs in the queue, those that run excluded."""
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        """Jobs that are answered."""
        return len(self._running)

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            ApiError: 429 if the queue is full, 503 if the server is going down.
        """
        with self._changed:
            if self._stopping:
                raise _going_down()
            # an idle worker takes the job at once, so that it does not count as waiting
            if self.n_waiting + self.n_running >= self.max_waiting + self._n_threads:
                raise ApiError(
                    429,
                    f"{self.n_waiting} requests are waiting, which is the limit; try again later",
                    code="queue_full",
                    headers={"Retry-After": "5"},
                )
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Take a job out of the queue, or end it at its next step."""
        job.cancel()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)

    def stop(self, timeout: float = 10.0) -> None:
        """End all jobs, telling their clients, and wait for the threads.

        Args:
            timeout: seconds to wait for a step of what runs.
        """
        self.end_jobs()
        ends = time.monotonic() + timeout
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, ends - time.monotonic()))

    def end_jobs(self) -> None:
        """End all jobs and take no more."""
        with self._changed:
            self._stopping = True
            for job in self._waiting:
                job.emit(Failed(_going_down()))
            self._waiting.clear()
            for job in self._running:
                job.cancel(_going_down())
            self._changed.notify_all()

    def _thread(self, target: Callable[[], None]) -> threading.Thread:
        # a daemon, so that a native call that does not return cannot keep the process alive
        return threading.Thread(target=target, name="snapkv-worker", daemon=True)

    def _first(self) -> None:
        try:
            n_threads = self._load()
        except BaseException as e:
            self._on_failure(e)
            return
        with self._changed:
            self._n_threads = n_threads
            self._threads += [self._thread(self._run) for _ in range(n_threads - 1)]
        for thread in self._threads[1:]:
            thread.start()
        self.ready = True
        self._run()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._stopping:
                    self._changed.wait()
                if self._stopping:
                    return
                job = self._waiting.popleft()
                self._running.add(job)
            try:
                job.run()
            except Exception:  # the next request is to be answered all the same
                logger.exception("a job failed to report")
            finally:
                with self._changed:
                    self._running.discard(job)
                del job  # while this thread waits for another one


def _going_down() -> ApiError:
    return ApiError(503, "the server is shutting down", code="shutting_down")
