"""The routes of OpenAI's API."""

from __future__ import annotations

import time
from typing import Any

from fastapi import FastAPI, Request, Response

from snapkv_local.server import about
from snapkv_local.server.answer import OpenAIForm, merge_chat, merge_completion
from snapkv_local.server.engine import Engine
from snapkv_local.server.errors import ApiError
from snapkv_local.server.exchange import Exchange
from snapkv_local.server.paths import at
from snapkv_local.server.responses_answer import ResponsesForm
from snapkv_local.server.responses_request import ResponsesRequest
from snapkv_local.server.schemas import ChatRequest, CompletionRequest


def add(app: FastAPI, engine: Engine, exchange: Exchange) -> None:
    """Add them."""
    created = int(time.time())
    worker = exchange.worker

    @at(app, "/v1/models /models", ["GET"])
    async def models() -> dict[str, Any]:
        """The one model."""
        return {"object": "list", "data": [about.model(engine, created, worker.ready)]}

    @at(app, "/v1/models/{name:path}", ["GET"], include_in_schema=False)
    async def model(name: str) -> dict[str, Any]:
        """The one model."""
        if name != engine.model:
            raise ApiError(404, f"the one model here is {engine.model}", code="model_not_found")
        return about.model(engine, created, worker.ready)

    @at(app, "/v1/documents", ["GET"])
    async def documents() -> dict[str, Any]:
        """What a chat's field `document` may name."""
        exchange.check_ready()
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

    @at(app, "/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue a text, or some."""
        form = OpenAIForm(merge_completion, body)
        return await exchange.answer(
            request, body, lambda job: engine.complete(body, job), form, body.stream
        )

    @at(app, "/v1/chat/completions /chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        form = OpenAIForm(merge_chat, body)
        return await exchange.answer(
            request, body, lambda job: engine.chat(body, job), form, body.stream
        )

    @at(app, "/v1/chat/completions/input_tokens /chat/completions/input_tokens")
    async def chat_tokens(body: ChatRequest, request: Request) -> Response:
        """Count the tokens of a conversation."""
        return await exchange.find(request, body, lambda job: engine.count(body, job))

    @at(app, "/v1/responses /responses")
    async def responses(body: ResponsesRequest, request: Request) -> Response:
        """Answer a conversation, of which nothing is stored."""
        asked = body.chat()
        form = ResponsesForm(engine.model, body)
        return await exchange.answer(
            request, body, lambda job: engine.chat(asked, job), form, body.stream
        )
