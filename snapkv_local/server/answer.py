"""From the chunks of a stream to one answer."""

from __future__ import annotations

from typing import Any


def merge_chat(chunks: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
    """A chat completion from its chunks."""
    choices = [chunk["choices"][0] for chunk in chunks]
    calls = [call for choice in choices for call in choice["delta"].get("tool_calls") or []]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    message: dict[str, Any] = {"role": "assistant", "content": None if calls else text}
    if calls:
        message["tool_calls"] = [
            {name: value for name, value in call.items() if name != "index"} for call in calls
        ]
    logprobs = [
        entry for choice in choices for entry in (choice["logprobs"] or {}).get("content", [])
    ]
    choice = {
        "index": 0,
        "message": message,
        "logprobs": {"content": logprobs, "refusal": None} if logprobs else None,
        "finish_reason": _finish_reason(choices),
    }
    return _answer(chunks, "chat.completion", choice, usage)


def merge_completion(chunks: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
    """A text completion from its chunks."""
    choices = [chunk["choices"][0] for chunk in chunks]
    parts = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    names = ("tokens", "text_offset", "token_logprobs", "top_logprobs")
    choice = {
        "index": 0,
        "text": "".join(choice["text"] for choice in choices),
        "logprobs": {name: [value for part in parts for value in part[name]] for name in names}
        if parts
        else None,
        "finish_reason": _finish_reason(choices),
    }
    return _answer(chunks, "text_completion", choice, usage)


def _finish_reason(choices: list[dict[str, Any]]) -> str | None:
    return next((c["finish_reason"] for c in reversed(choices) if c["finish_reason"]), None)


def _answer(
    chunks: list[dict[str, Any]], kind: str, choice: dict[str, Any], usage: dict[str, Any]
) -> dict[str, Any]:
    first = chunks[0]
    return {
        "id": first["id"],
        "object": kind,
        "created": first["created"],
        "model": first["model"],
        "choices": [choice],
        "usage": usage,
    }
