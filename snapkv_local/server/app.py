"""The routes."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from snapkv_local.server.answer import merge_chat, merge_completion
from snapkv_local.server.engine import Engine
from snapkv_local.server.errors import ApiError, from_exception, refusal
from snapkv_local.server.guard import Guard
from snapkv_local.server.metrics import CountAnswers, Metrics
from snapkv_local.server.schemas import (
    ChatRequest,
    CommonRequest,
    CompletionRequest,
    ErrorResponse,
)
from snapkv_local.server.words import from_validation
from snapkv_local.server.worker import Chunk, Done, Event, Failed, Job, Progress, Work, Worker

# seconds between two looks at whether a client is still there
_LOOK_EVERY = 0.1

# of an answer: fields of the request that the server does not know
IGNORED = "X-SnapKV-Ignored"

_STATUSES = (400, 401, 403, 404, 405, 413, 415, 429, 500, 501, 503)
_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page/chat.js": ("chat.js", "text/javascript; charset=utf-8"),
    "/page/reading.js": ("reading.js", "text/javascript; charset=utf-8"),
    "/page/chat.css": ("chat.css", "text/css; charset=utf-8"),
}


@dataclass(frozen=True)
class ServerOptions:
    """What the server allows.

    Attributes:
        api_keys: of which a request needs one; none for no key.
        max_body: bytes of a request.
        cors_origins: web origins whose pages may call; none for no page but the server's own.
        hosts: names in the Host header; None for any.
        strict: whether fields that the server does not know are refused; else an answer's header
            names them.
    """

    api_keys: tuple[str, ...] = ()
    max_body: int = 64 * 1024**2
    cors_origins: tuple[str, ...] = ()
    hosts: frozenset[str] | None = None
    strict: bool = False


def make_app(engine: Engine, worker: Worker, options: ServerOptions) -> FastAPI:
    """The server's application.

    Args:
        engine: answers; used on the worker's thread only.
        worker: started by the caller.
        options: what is allowed.
    """
    app = FastAPI(
        title="snapkv-local",
        docs_url=None,  # they load scripts from a CDN
        redoc_url=None,
        responses={status: {"model": ErrorResponse} for status in _STATUSES},
    )
    app.state.metrics = metrics = Metrics(worker)
    created = int(time.time())
    api = _Api(worker, metrics, options.strict)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model."""
        entry = {"id": engine.model, "object": "model", "created": created, "owned_by": "local"}
        return {"object": "list", "data": [entry]}

    @app.get("/v1/documents")
    async def documents() -> dict[str, Any]:
        """What a chat's field `document` may name."""
        if not worker.ready:
            raise ApiError(503, "the model is being loaded; try again", code="loading")
        return {
            "object": "list",
            "data": [
                {
                    "id": id_,
                    "object": "document",
                    "title": document.title,
                    "n_tokens": len(document.tokens),
                    "n_bytes": document.n_bytes,
                }
                for id_, document in engine.documents.items()
            ],
        }

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue a text."""
        return await api.answer(request, body, lambda job: engine.complete(body, job))

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        return await api.answer(request, body, lambda job: engine.chat(body, job))

    @app.post("/v1/embeddings")
    async def embeddings(body: dict[str, Any]) -> None:
        """Not done: SnapKV compresses prompts for generation."""
        raise ApiError(
            501,
            "this server has no embeddings: SnapKV compresses prompts for generation",
            code="not_supported",
        )

    @app.get("/health")
    async def health() -> Response:
        """200 once the model is loaded, and while its file is what it was."""
        status = "loading" if not worker.ready else "ok" if engine.is_whole() else "model_changed"
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def show_metrics() -> Response:
        """For Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    for path, (name, kind) in _PAGE.items():
        content = (resources.files("snapkv_local.server") / "page" / name).read_bytes()
        app.add_api_route(path, _static(content, kind), include_in_schema=False)

    _add_errors(app)
    paths = frozenset(route.path for route in app.routes if isinstance(route, Route))
    # the last one added sees a request first
    app.add_middleware(
        Guard, api_keys=options.api_keys, max_body=options.max_body, hosts=options.hosts
    )
    app.add_middleware(CountAnswers, paths=paths, metrics=metrics)
    if options.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=options.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
            expose_headers=[IGNORED],
        )
    return app


class _Api:
    def __init__(self, worker: Worker, metrics: Metrics, strict: bool) -> None:
        self.worker = worker
        self.metrics = metrics
        self.strict = strict

    async def answer(self, request: Request, body: CommonRequest, work: Work) -> Response:
        if self.strict and body.ignored:
            raise refusal(
                f"{body.ignored[0]}: this server does not know it: leave it out", body.ignored[0]
            )
        headers = _ignored(body)
        job = Job(work)
        self.worker.submit(job)
        handed_over = False
        try:
            # what is wrong with a request shows before its first event, while there is a status
            first = await self._next(request, job)
            if isinstance(first, Failed):
                raise first.error
            if body.stream and first is not None:
                handed_over = True
                events = self._stream(request, job, first, body)
                return _EventStream(events, headers, lambda: self._end(job))
            response = await self._whole(request, job, first, body)
            response.headers.update(headers)
            return response
        finally:
            if not handed_over:
                self._end(job)

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

    async def _whole(
        self, request: Request, job: Job, event: Event | None, body: CommonRequest
    ) -> Response:
        chunks = []
        while event is not None:
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Chunk):
                chunks.append(event.data)
            elif isinstance(event, Done):
                self.metrics.count(event.usage)
                merge = merge_chat if isinstance(body, ChatRequest) else merge_completion
                return JSONResponse(merge(chunks, event.usage))
            event = await self._next(request, job)
        return Response(status_code=499)  # nobody reads it

    async def _stream(
        self, request: Request, job: Job, event: Event | None, body: CommonRequest
    ) -> AsyncIterator[str]:
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        last: dict[str, Any] = {}
        while event is not None:
            if isinstance(event, Progress):
                # a comment: clients that do not know it pass over it
                yield f": prefill {event.done}/{event.total}\n\n"
            elif isinstance(event, Chunk):
                last = event.data
                yield _data({**last, "usage": None} if include_usage else last)
            elif isinstance(event, Failed):
                yield _data(event.error.body())
                return
            else:
                self.metrics.count(event.usage)
                if include_usage:
                    yield _data({**last, "choices": [], "usage": event.usage})
                yield "data: [DONE]\n\n"
                return
            event = await self._next(request, job)


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


def _ignored(body: CommonRequest) -> dict[str, str]:
    """Headers that name fields without effect; headers take little, and ASCII only."""
    names = [name[:100].encode("ascii", "backslashreplace").decode() for name in body.ignored[:20]]
    # a value that ends with a blank is no header
    printable = [re.sub(r"[^!-~]|,", "?", name) or '""' for name in names]
    return {IGNORED: ", ".join(printable)} if names else {}


def _data(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _static(content: bytes, kind: str) -> Any:
    async def serve() -> Response:
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

    return serve


def _add_errors(app: FastAPI) -> None:
    def respond(error: ApiError) -> Response:
        text = json.dumps(error.body())  # ASCII, as a message may quote what is not Unicode
        return Response(text, error.status, error.headers, "application/json")

    async def on_api_error(_request: Request, error: Exception) -> Response:
        return respond(from_exception(error))

    async def on_http(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return respond(
            ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {}))
        )

    async def on_validation(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        message, param = from_validation(error.errors(), error.body)
        return respond(ApiError(400, message, param=param, code="invalid_value"))

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(Exception, on_api_error)

    make_schema = app.openapi

    def openapi() -> dict[str, Any]:
        """Without the status 422, which FastAPI writes and this server never sends."""
        schema = make_schema()
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
