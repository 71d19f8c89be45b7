"""The worker's jobs: what is left of one when it has ended."""

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from snapkv_local.server.errors import ApiError
from snapkv_local.server.worker import Event, Job, Progress


class Held:
    """Such as a sampler, or logits."""


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("reason", [None, ApiError(503, "is shutting down")])
@pytest.mark.parametrize("at", ["a step", "an event"])
def test_a_job_that_is_cancelled_holds_nothing(reason: Exception | None, at: str) -> None:
    held: list[Callable[[], Held | None]] = []

    def work(job: Job) -> Iterator[Event]:
        sampler = Held()
        held.append(weakref.ref(sampler))
        job.cancel(reason)
        if at == "a step":
            job.check()
        yield Progress(1, 2)

    async def run() -> Job:
        job = Job(work)
        job.run()
        while not job.events.empty():
            job.events.get_nowait()
        return job

    with ThreadPoolExecutor(
        1
    ) as pool:  # a thread without a loop, which tests of the page leave behind
        job = pool.submit(lambda: asyncio.run(run())).result()
    assert job.ended == (reason is not None)
    if reason is not None:
        reason.__traceback__ = None  # it is the test's own
    assert held[0]() is None
