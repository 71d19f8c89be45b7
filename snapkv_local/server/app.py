"""The routes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import PlainTextResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Route

from snapkv_local.server import anthropic_routes, llama_routes, not_done, openai_routes
from snapkv_local.server.engine import Engine
from snapkv_local.server.errors import ApiError, from_exception
from snapkv_local.server.exchange import IGNORED, Exchange
from snapkv_local.server.guard import PAGE, Guard
from snapkv_local.server.metrics import CountAnswers, Metrics
from snapkv_local.server.schemas import (
    ErrorResponse,
)
from snapkv_local.server.words import from_validation
from snapkv_local.server.worker import Worker

# seconds between two looks at whether a client is still there
_LOOK_EVERY = 0.1

_STATUSES = (400, 401, 403, 404, 405, 413, 415, 429, 500, 501, 503)
_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}


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
        shows_slots: whether /slots says what conversations hold.
    """

    api_keys: tuple[str, ...] = ()
    max_body: int = 64 * 1024**2
    cors_origins: tuple[str, ...] = ()
    hosts: frozenset[str] | None = None
    strict: bool = False
    shows_slots: bool = True


def make_app(engine: Engine, worker: Worker, options: ServerOptions) -> FastAPI:
    """The server's application.

    Args:
        engine: answers, on the worker's threads.
        worker: started by the caller.
        options: what is allowed.
    """
    app = FastAPI(
        title="snapkv-local",
        docs_url=None,  # they load scripts from a CDN
        redoc_url=None,
        responses={status: {"model": ErrorResponse} for status in _STATUSES},
    )
    app.state.metrics = metrics = Metrics(worker, engine)
    exchange = Exchange(worker, metrics, options.strict)
    openai_routes.add(app, engine, exchange)
    anthropic_routes.add(app, engine, exchange)
    if not options.shows_slots:
        not_done.hide_slots(app)  # of two routes with a path, the first one answers
    llama_routes.add(app, engine, exchange)
    not_done.add(app)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def show_metrics() -> Response:
        """For Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    for file in (resources.files("snapkv_local.server") / "page").iterdir():
        path = "/" if file.name == "index.html" else f"{PAGE}{file.name}"
        kind = f"{_TYPES[file.name.rpartition('.')[2]]}; charset=utf-8"
        app.add_api_route(path, _static(file.read_bytes(), kind), include_in_schema=False)

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
            allow_headers=["authorization", "content-type", "x-api-key"],
            expose_headers=[IGNORED],
        )
    return app


def _static(content: bytes, kind: str) -> Any:
    async def serve() -> Response:
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

    return serve


def _add_errors(app: FastAPI) -> None:
    def respond(request: Request, error: ApiError) -> Response:
        # ASCII, as a message may quote what is not Unicode
        text = json.dumps(error.body_for(request.url.path))
        return Response(text, error.status, error.headers, "application/json")

    async def on_api_error(request: Request, error: Exception) -> Response:
        return respond(request, from_exception(error))

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return respond(
            request,
            ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {})),
        )

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError | ValidationError)
        # of a chat that another API's request asks for there is no JSON
        body = error.body if isinstance(error, RequestValidationError) else None
        message, param = from_validation(error.errors(), body)
        return respond(request, ApiError(400, message, param=param, code="invalid_value"))

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(ValidationError, on_validation)
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
