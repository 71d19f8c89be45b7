"""The routes of Anthropic's API."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response

from snapkv_local.server.anthropic_answer import AnthropicForm
from snapkv_local.server.anthropic_request import MessagesRequest
from snapkv_local.server.engine import Engine
from snapkv_local.server.exchange import Exchange
from snapkv_local.server.paths import at


def add(app: FastAPI, engine: Engine, exchange: Exchange) -> None:
    """Add them."""

    @at(app, "/v1/messages")
    async def messages(body: MessagesRequest, request: Request) -> Response:
        """Answer a conversation, in the form of Anthropic's API."""
        asked = body.chat()
        form = AnthropicForm(engine.model)
        return await exchange.answer(
            request, body, lambda job: engine.chat(asked, job), form, body.stream
        )

    @at(app, "/v1/messages/count_tokens")
    async def count_tokens(body: MessagesRequest, request: Request) -> Response:
        """Count the tokens of a conversation."""
        asked = body.chat()
        return await exchange.find(request, body, lambda job: engine.count(asked, job))
