"""Endpoints of llama-server and OpenAI that are not done, and why."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI

from snapkv_local.server.errors import ApiError
from snapkv_local.server.paths import at

_EMBEDDINGS = "this server has no embeddings: SnapKV compresses prompts for generation"
SLOTS = (
    "a place has no content of its own to save or erase: POST /slots/CONVERSATION?action=erase takes "
    "the id of a conversation, of GET /slots"
)
_STORED = "this server stores no answers: send the whole conversation in each request"
_TEXT = "this server reads and writes text only"
_ADAPTERS = "the adapter is chosen when the server starts, with --lora"
_NONE = "this server has chats and completions only"
_OLLAMA = "this is no Ollama: POST /v1/chat/completions answers chats"

REASONS = {
    "/v1/embeddings /embeddings /embedding": _EMBEDDINGS,
    "/v1/rerank /v1/reranking /rerank /reranking": f"{_EMBEDDINGS}, and ranks no documents",
    "/infill": "text is continued, not filled in: POST /completion with what stands before",
    "/lora-adapters": _ADAPTERS,
    "/slots/{id}": SLOTS,
    "/v1/responses/{id} /v1/responses/{id}/cancel /v1/responses/{id}/input_items": _STORED,
    "/v1/chat/completions/{id}": _STORED,
    "/v1/messages/batches": "requests are answered one by one: send each to /v1/messages",
    "/v1/audio/transcriptions /v1/audio/speech /v1/images/generations": _TEXT,
    "/v1/moderations /v1/files /v1/batches /v1/fine_tuning/jobs": _NONE,
    "/api/chat /api/generate /api/tags /api/show": _OLLAMA,
}


def add(app: FastAPI) -> None:
    """Answer them with 501 and the reason."""
    for paths, reason in REASONS.items():
        at(app, paths, ("GET", "POST", "DELETE"), include_in_schema=False)(_refusing(reason))


def hide_slots(app: FastAPI) -> None:
    """Refuse what conversations hold, as the server was told to."""
    refuse = _refusing("this server was started with --no-slots")
    at(app, "/slots", ["GET"], include_in_schema=False)(refuse)


def _refusing(reason: str) -> Callable[[], None]:
    def refuse() -> None:
        raise ApiError(501, reason, code="not_supported")

    return refuse
