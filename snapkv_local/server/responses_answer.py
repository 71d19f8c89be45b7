"""Answers in the form of OpenAI's Responses API, from the chunks of a chat."""

from __future__ import annotations

import copy
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from snapkv_local.server.answer import progress_of
from snapkv_local.server.form import comment, sent
from snapkv_local.server.responses_request import ResponsesRequest
from snapkv_local.server.worker import Chunk, Done, Event, Failed, Progress

_TEXT = {"text": "output_text", "thought": "reasoning_text"}
_EVENT = {"text": "response.output_text", "thought": "response.reasoning_text"}


class ResponsesForm:
    """Of one response.

    Args:
        model: its name.
        request: that is answered.
    """

    def __init__(self, model: str, request: ResponsesRequest) -> None:
        self.request = request
        given = request.model_dump(mode="json", by_alias=True)
        self.response: dict[str, Any] = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": {},
            "model": model,
            "output": [],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": given["reasoning"] or {"effort": None, "summary": None},
            "store": False,
            "temperature": request.temperature,
            "text": given["text"] or {"format": {"type": "text"}},
            "tool_choice": given["tool_choice"] or "auto",
            "tools": [
                tool if tool["type"] == "namespace" else {"strict": False, **tool}
                for tool in given["tools"] or []
            ],
            "top_p": request.top_p,
            "truncation": "disabled",
            "usage": None,
        }
        self._n_events = 0
        self._created = False
        self._kind = ""  # of the item that grows
        self._reason: str | None = None

    def events(self, event: Event) -> Iterator[str]:
        """As Form has it."""
        told = list(self._told(event))
        for i, data in enumerate(told):
            is_timed = self.request.timings_per_token and i == len(told) - 1
            if is_timed and isinstance(event, Chunk) and "timings" in event.data:
                data = {**data, "timings": event.data["timings"]}
            yield self._sent(data)
        if isinstance(event, Progress) and not self.request.return_progress:
            yield comment(f"prefill {event.done}/{event.total}")

    def whole(self, events: Sequence[Event]) -> dict[str, Any]:
        """As Form has it."""
        for event in events:
            for _ in self._told(event):
                pass
        done = events[-1]
        assert isinstance(done, Done)
        return {**self.response, "timings": done.timings}

    def _sent(self, data: dict[str, Any]) -> str:
        data = {**data, "sequence_number": self._n_events}
        self._n_events += 1
        return sent(data, data["type"])

    def _told(self, event: Event) -> Iterator[dict[str, Any]]:
        """The events of OpenAI's; the response grows by what they say."""
        if isinstance(event, Failed):
            code = event.error.code or "server_error"
            error = {"code": code, "message": event.error.message}
            self.response |= {"status": "failed", "error": error}
            yield from self._create()
            yield self._of_response("response.failed")
            return
        yield from self._create()
        if isinstance(event, Progress) and self.request.return_progress:
            progress = self._of_response("response.in_progress")
            yield {**progress, "prompt_progress": progress_of(event)}
        elif isinstance(event, Chunk):
            choice = event.data["choices"][0]
            self._reason = choice["finish_reason"] or self._reason
            delta = choice["delta"]
            if delta.get("reasoning_content"):
                yield from self._grow("thought", delta["reasoning_content"])
            if delta.get("content"):
                yield from self._grow("text", delta["content"])
            for call in delta.get("tool_calls") or []:
                yield from self._call(call)
        elif isinstance(event, Done):
            yield from self._close()
            yield {**self._end(event), "timings": event.timings}

    def _create(self) -> Iterator[dict[str, Any]]:
        if not self._created:
            self._created = True
            yield self._of_response("response.created")
            yield self._of_response("response.in_progress")

    def _of_response(self, kind: str) -> dict[str, Any]:
        return {"type": kind, "response": copy.deepcopy(self.response)}

    def _at(self, kind: str, **more: Any) -> dict[str, Any]:
        """An event of the item that grows."""
        at = len(self.response["output"]) - 1
        return {
            "type": kind,
            "item_id": self.response["output"][at]["id"],
            "output_index": at,
            **more,
        }

    def _grow(self, kind: str, text: str) -> Iterator[dict[str, Any]]:
        """More of an item's text, which begins with it if none of its kind is open."""
        if self._kind != kind:
            yield from self._close()
            part: dict[str, Any] = {"type": _TEXT[kind], "text": ""}
            if kind == "text":
                part |= {"annotations": [], "logprobs": []}
                item: dict[str, Any] = {"type": "message", "role": "assistant"}
            else:
                item = {"type": "reasoning", "summary": [], "encrypted_content": None}
            yield from self._open(kind, item, content=[])
            self.response["output"][-1]["content"] = [part]
            yield self._at("response.content_part.added", content_index=0, part=dict(part))
        self.response["output"][-1]["content"][0]["text"] += text
        more: dict[str, Any] = {"logprobs": []} if kind == "text" else {}
        yield self._at(f"{_EVENT[kind]}.delta", content_index=0, delta=text, **more)

    def _call(self, call: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from self._close()
        called = self.request.called(call["function"]["name"])
        name, arguments = called["name"], call["function"]["arguments"]
        item = {"type": "function_call", "call_id": call["id"], **called}
        yield from self._open("call", item, arguments="")
        self.response["output"][-1]["arguments"] = arguments
        yield self._at("response.function_call_arguments.delta", delta=arguments)
        yield self._at("response.function_call_arguments.done", name=name, arguments=arguments)

    def _open(self, kind: str, item: dict[str, Any], **empty: Any) -> Iterator[dict[str, Any]]:
        prefix = {"text": "msg", "thought": "rs", "call": "fc"}[kind]
        item = {"id": f"{prefix}_{uuid.uuid4().hex}", "status": "in_progress", **item, **empty}
        self._kind = kind
        self.response["output"].append(item)
        at = len(self.response["output"]) - 1
        yield {
            "type": "response.output_item.added",
            "output_index": at,
            "item": copy.deepcopy(item),
        }

    def _close(self) -> Iterator[dict[str, Any]]:
        if not self._kind:
            return
        item = self.response["output"][-1]
        if self._kind in _EVENT:
            part = item["content"][0]
            more: dict[str, Any] = {"logprobs": []} if self._kind == "text" else {}
            done = f"{_EVENT[self._kind]}.done"
            yield self._at(done, content_index=0, text=part["text"], **more)
            yield self._at("response.content_part.done", content_index=0, part=dict(part))
        item["status"] = "completed"
        self._kind = ""
        at = len(self.response["output"]) - 1
        yield {
            "type": "response.output_item.done",
            "output_index": at,
            "item": copy.deepcopy(item),
        }

    def _end(self, done: Done) -> dict[str, Any]:
        usage = done.usage
        cut = self._reason == "length"
        status = "incomplete" if cut else "completed"
        self.response |= {
            "status": status,
            "completed_at": None if cut else int(time.time()),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": {**usage["prompt_tokens_details"], "cache_write_tokens": 0},
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage["total_tokens"],
                "snapkv": usage["snapkv"],
            },
        }
        return self._of_response(f"response.{status}")
