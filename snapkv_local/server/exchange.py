"""One request: its job, and what the client gets of it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from snapkv_local.server.common import ReadRequest
from snapkv_local.server.errors import ApiError, refusal
from snapkv_local.server.form import Form
from snapkv_local.server.metrics import Metrics
from snapkv_local.server.worker import Done, Event, Failed, Found, Job, Work, Worker

# seconds between two looks at whether a client is still there
_LOOK_EVERY = 0.1

# of an answer: fields of the request that the server does not know
IGNORED = "X-SnapKV-Ignored"


class Exchange:
    """Answers requests by jobs of a worker.

    Args:
        worker: that does them.
        metrics: that count what they took.
        strict: refuse fields that the server does not know.
    """

    def __init__(self, worker: Worker, metrics: Metrics, strict: bool) -> None:
        self.worker = worker
        self.metrics = metrics
        self.strict = strict

    async def answer(
        self, request: Request, body: ReadRequest, work: Work, form: Form, stream: bool
    ) -> Response:
        """The answer of a model, in an API's form.

        Args:
            body: the request's fields.
            stream: send it while it is made.

        Raises:
            ApiError: there is none.
        """
        headers = self.checked(body)
        job = Job(work)
        self.worker.submit(job)
        handed_over = False
        try:
            # what is wrong with a request shows before its first event, while there is a status
            first = await self._next(request, job)
            if isinstance(first, Failed):
                raise first.error
            if stream and first is not None:
                handed_over = True
                events = self._stream(request, job, first, form)
                return _EventStream(events, headers, lambda: self._end(job))
            response = await self._whole(request, job, first, form)
            response.headers.update(headers)
            return response
        finally:
            if not handed_over:
                self._end(job)

    async def find(self, request: Request, body: ReadRequest, work: Work) -> Response:
        """The one event of a job that answers no chat.

        Raises:
            ApiError: it failed.
        """
        headers = self.checked(body)
        job = Job(work)
        self.worker.submit(job)
        try:
            event = await self._next(request, job)
        finally:
            self._end(job)
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Found):
            return JSONResponse(event.data, headers=headers)
        return _gone()

    def check_ready(self) -> None:
        """Before what needs the model and no job.

        Raises:
            ApiError: it is not loaded yet.
        """
        if not self.worker.ready:
            raise ApiError(503, "the model is being loaded; try again", code="loading")

    def checked(self, body: ReadRequest) -> dict[str, str]:
        """Headers that name fields without effect.

        Raises:
            ApiError: there are some, and the server is strict.
        """
        if self.strict and body.ignored:
            raise refusal(
                f"{body.ignored[0]}: this server does not know it: leave it out", body.ignored[0]
            )
        return _ignored(body)

    def _end(self, job: Job) -> None:
        """Once nobody reads a job's events any more."""
        if not job.ended:
            self.metrics.cancelled.inc()
            self.worker.cancel(job)

    async def _next(self, request: Request, job: Job) -> Event | None:
        """The next event; None if the client has gone."""
        while True:
            try:
                return await asyncio.wait_for(job.events.get(), _LOOK_EVERY)
            except asyncio.TimeoutError:
                if await request.is_disconnected():
                    return None

    async def _whole(self, request: Request, job: Job, event: Event | None, form: Form) -> Response:
        events = []
        while event is not None:
            if isinstance(event, Failed):
                raise event.error
            events.append(event)
            if isinstance(event, Done):
                self.metrics.count(event.usage)
                return JSONResponse(form.whole(events))
            event = await self._next(request, job)
        return _gone()

    async def _stream(
        self, request: Request, job: Job, event: Event | None, form: Form
    ) -> AsyncIterator[str]:
        while event is not None:
            if isinstance(event, Done):
                self.metrics.count(event.usage)
            for text in form.events(event):
                yield text
            if isinstance(event, Done | Failed):
                return
            event = await self._next(request, job)


def _gone() -> Response:
    """For a client that does not read it."""
    return Response(status_code=499)


class _EventStream(StreamingResponse):
    """Server-sent events; calls on_end however it ends, even before its first event."""

    def __init__(
        self, events: AsyncIterator[str], headers: dict[str, str], on_end: Callable[[], None]
    ) -> None:
        headers = {"Cache-Control": "no-store", **headers}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self.on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.on_end()


def _ignored(body: ReadRequest) -> dict[str, str]:
    """Headers that name fields without effect; headers take little, and ASCII only."""
    names = [name[:100].encode("ascii", "backslashreplace").decode() for name in body.ignored[:20]]
    # a value that ends with a blank is no header
    printable = [re.sub(r"[^!-~]|,", "?", name) or '""' for name in names]
    return {IGNORED: ", ".join(printable)} if names else {}
