"""Answers in the form of Anthropic's API, from the chunks of a chat."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from snapkv_local.server.errors import anthropic_body
from snapkv_local.server.form import comment, sent
from snapkv_local.server.worker import Began, Chunk, Done, Ended, Event, Failed, Progress

_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class AnthropicForm:
    """Of one message.

    Args:
        model: its name.
    """

    def __init__(self, model: str) -> None:
        self.message: dict[str, Any] = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": model,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 0},
        }
        self._open: dict[str, Any] | None = None
        self._reason: str | None = None
        self._stopped_by: str | None = None

    def events(self, event: Event) -> Iterator[str]:
        """As Form has it."""
        if isinstance(event, Progress):
            yield comment(f"prefill {event.done}/{event.total}")
        elif isinstance(event, Failed):
            yield sent(anthropic_body(event.error), "error")
        else:
            for data in self._told(event):
                yield sent(data, data["type"])

    def whole(self, events: Sequence[Event]) -> dict[str, Any]:
        """As Form has it."""
        for event in events:
            for _ in self._told(event):
                pass
        return self.message

    def _told(self, event: Event) -> Iterator[dict[str, Any]]:
        """The events of Anthropic's; the message grows by what they say."""
        if isinstance(event, Began):
            self.message["usage"] |= {
                "input_tokens": event.n_prompt - event.n_cached,
                "cache_read_input_tokens": event.n_cached,
            }
            yield {"type": "message_start", "message": json.loads(json.dumps(self.message))}
        elif isinstance(event, Chunk):
            choice = event.data["choices"][0]
            self._reason = choice["finish_reason"] or self._reason
            yield from self._delta(choice["delta"])
        elif isinstance(event, Ended):
            self._stopped_by = event.stopped_by
        elif isinstance(event, Done):
            yield from self._close()
            reason = _REASONS.get(self._reason or "stop", "end_turn")
            if self._stopped_by is not None and reason == "end_turn":
                reason = "stop_sequence"
            ending = {"stop_reason": reason, "stop_sequence": self._stopped_by}
            self.message |= ending
            self.message["usage"]["output_tokens"] = event.usage["completion_tokens"]
            yield {"type": "message_delta", "delta": ending, "usage": self.message["usage"]}
            yield {"type": "message_stop"}

    def _delta(self, delta: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if delta.get("reasoning_content"):
            yield from self._grow("thinking", "thinking", delta["reasoning_content"])
        if delta.get("content"):
            yield from self._grow("text", "text", delta["content"])
        for call in delta.get("tool_calls") or []:
            arguments = call["function"]["arguments"]
            yield from self._close()
            block = {"type": "tool_use", "id": call["id"], "name": call["function"]["name"]}
            yield from self._start({**block, "input": {}})
            self.message["content"][-1]["input"] = _object(arguments)
            yield self._part("input_json_delta", "partial_json", arguments)

    def _grow(self, kind: str, key: str, text: str) -> Iterator[dict[str, Any]]:
        """More of a block, which begins with it if none of its kind is open."""
        if self._open is None or self._open["type"] != kind:
            yield from self._close()
            signature = {"signature": ""} if kind == "thinking" else {}
            yield from self._start({"type": kind, key: "", **signature})
        assert self._open is not None
        self._open[key] += text
        yield self._part(f"{kind}_delta", key, text)

    def _start(self, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
        self._open = block
        self.message["content"].append(block)
        at = len(self.message["content"]) - 1
        yield {"type": "content_block_start", "index": at, "content_block": dict(block)}

    def _close(self) -> Iterator[dict[str, Any]]:
        if self._open is None:
            return
        if self._open["type"] == "thinking":  # which clients wait for; nobody signs here
            yield self._part("signature_delta", "signature", "")
        self._open = None
        yield {"type": "content_block_stop", "index": len(self.message["content"]) - 1}

    def _part(self, kind: str, key: str, text: str) -> dict[str, Any]:
        at = len(self.message["content"]) - 1
        return {"type": "content_block_delta", "index": at, "delta": {"type": kind, key: text}}


def _object(arguments: str) -> dict[str, Any]:
    """A call's arguments; those that max_tokens has cut are no JSON."""
    try:
        found = json.loads(arguments)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
