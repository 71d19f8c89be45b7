"""The routes that are llama-server's own."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field, StrictBool

from snapkv_local.server import about, fields, not_done
from snapkv_local.server.common import ReadRequest, TokenId
from snapkv_local.server.engine import Engine
from snapkv_local.server.errors import ApiError
from snapkv_local.server.exchange import Exchange
from snapkv_local.server.native_answer import NativeForm
from snapkv_local.server.paths import at
from snapkv_local.server.schemas import ChatRequest, NativeRequest


class TokenizeRequest(ReadRequest):
    """POST /tokenize."""

    table = fields.table("content add_special parse_special with_pieces", "")

    content: str
    add_special: StrictBool = False
    parse_special: StrictBool = True
    with_pieces: StrictBool = False


class DetokenizeRequest(ReadRequest):
    """POST /detokenize."""

    table = fields.table("tokens", "")

    tokens: Annotated[list[TokenId], Field(max_length=10_000_000)]


def add(app: FastAPI, engine: Engine, exchange: Exchange) -> None:
    """Add them."""
    worker = exchange.worker

    @at(app, "/completion /completions")
    async def completion(body: NativeRequest, request: Request) -> Response:
        """Continue a text, or some, in llama-server's own form."""
        form = NativeForm(engine.model, body)
        return await exchange.answer(
            request, body, lambda job: engine.native(body, job), form, body.stream
        )

    # no functions of the event loop: a long text takes a while
    @at(app, "/tokenize")
    def tokenize(body: TokenizeRequest) -> Response:
        """A text's tokens; words of the model's own become control tokens unless parse_special is false."""
        exchange.check_ready()
        headers = exchange.checked(body)
        tokens = engine.tokens(body.content, body.add_special, body.parse_special)
        if not body.with_pieces:
            return JSONResponse({"tokens": tokens}, headers=headers)
        pieces = zip(tokens, engine.pieces(tokens), strict=True)
        found = [{"id": token, "piece": _piece(piece)} for token, piece in pieces]
        return JSONResponse({"tokens": found}, headers=headers)

    @at(app, "/detokenize")
    def detokenize(body: DetokenizeRequest) -> Response:
        """What tokens spell."""
        exchange.check_ready()
        headers = exchange.checked(body)
        text = b"".join(engine.pieces(body.tokens)).decode("utf-8", "replace")
        return JSONResponse({"content": text}, headers=headers)

    @at(app, "/apply-template")
    async def apply_template(body: ChatRequest, request: Request) -> Response:
        """The prompt that a chat becomes."""
        return await exchange.find(request, body, lambda job: engine.apply_template(body, job))

    @at(app, "/props", ["GET"])
    async def props() -> dict[str, Any]:
        """The server's settings."""
        exchange.check_ready()
        return about.props(engine)

    @at(app, "/slots", ["GET"])
    async def slots(resting: bool = False) -> list[dict[str, Any]]:
        """What each conversation holds; with those that rest, if they are asked for."""
        exchange.check_ready()
        return about.slots(engine, resting)

    # no function of the event loop: it may wait for a conversation that comes from its file
    @at(app, "/slots/{id}")
    def slot(id: str, action: str = "") -> dict[str, int]:
        """Erase a conversation, by its id and not by its place's number."""
        if action != "erase" or id.isdecimal():
            raise ApiError(501, not_done.SLOTS, code="not_supported")
        exchange.check_ready()
        index, n_tokens = engine.pool.erase(id)
        return {"id_slot": index, "n_erased": n_tokens}

    @at(app, "/health /v1/health", ["GET", "HEAD"])
    async def health() -> Response:
        """200 once the model is loaded, and while its file is what it was."""
        status = "loading" if not worker.ready else "ok" if engine.is_whole() else "model_changed"
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)


def _piece(piece: bytes) -> str | list[int]:
    """A token's text, or its bytes where these are a part of a character."""
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return list(piece)
