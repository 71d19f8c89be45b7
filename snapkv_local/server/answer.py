"""OpenAI's form: the chunks of a stream, and one answer from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from snapkv_local.server.common import CommonRequest
from snapkv_local.server.form import comment, sent
from snapkv_local.server.worker import Began, Chunk, Done, Ended, Event, Failed, Progress

Merge = Callable[[int, list[dict[str, Any]]], dict[str, Any]]


class OpenAIForm:
    """Of a chat or a completion, or of several.

    Args:
        merge: merge_chat or merge_completion.
        request: that is answered.
    """

    def __init__(self, merge: Merge, request: CommonRequest) -> None:
        options = request.stream_options
        self.merge = merge
        self.request = request
        self.include_usage = options is not None and options.include_usage
        self._last: dict[str, Any] = {}

    def events(self, event: Event) -> Iterator[str]:
        """As Form has it."""
        if isinstance(event, Progress):
            if self.request.return_progress:
                yield sent({"choices": [], "prompt_progress": progress_of(event)})
            else:
                yield comment(f"prefill {event.done}/{event.total}")
        elif isinstance(event, Began):
            yield comment(f"conversation {event.conversation}")
        elif isinstance(event, Chunk):
            self._last = event.data
            yield sent({**event.data, "usage": None} if self.include_usage else event.data)
        elif isinstance(event, Failed):
            yield sent(event.error.body())
        elif isinstance(event, Done):
            if self.include_usage:
                more = {"choices": [], "usage": event.usage, "timings": event.timings}
                yield sent({**self._last, **more})
            yield "data: [DONE]\n\n"

    def whole(self, events: Sequence[Event]) -> dict[str, Any]:
        """As Form has it."""
        done = events[-1]
        assert isinstance(done, Done)
        by_index: dict[int, list[dict[str, Any]]] = {}
        for event in events:
            if isinstance(event, Chunk):
                choice = event.data["choices"][0]
                by_index.setdefault(choice["index"], []).append(choice)
        first = next(event.data for event in events if isinstance(event, Chunk))
        answer = {
            "id": first["id"],
            "object": first["object"].removesuffix(".chunk"),
            "created": first["created"],
            "model": first["model"],
            "system_fingerprint": first.get("system_fingerprint"),
            "choices": [self.merge(index, parts) for index, parts in by_index.items()],
            "usage": done.usage,
            "timings": done.timings,
        }
        ended = next((event for event in events if isinstance(event, Ended)), None)
        if self.request.verbose and ended is not None:
            answer["__verbose"] = final(ended, first["model"], "", "")
        return answer


def progress_of(event: Progress) -> dict[str, Any]:
    """How far a prompt is, in llama-server's form."""
    n_new = event.n_prompt - event.n_cached
    return {
        "total": event.n_prompt,
        "cache": event.n_cached,
        "processed": event.n_cached + n_new * event.done // max(event.total, 1),
        "time_ms": round(event.seconds * 1000),
    }


def merge_chat(index: int, choices: list[dict[str, Any]]) -> dict[str, Any]:
    """The choice of a chat completion from its pieces."""
    calls = [call for choice in choices for call in choice["delta"].get("tool_calls") or []]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    thought = "".join(choice["delta"].get("reasoning_content") or "" for choice in choices)
    message: dict[str, Any] = {"role": "assistant", "content": (text or None) if calls else text}
    if thought:
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = [
            {name: value for name, value in call.items() if name != "index"} for call in calls
        ]
    logprobs = [
        entry for choice in choices for entry in (choice["logprobs"] or {}).get("content", [])
    ]
    return {
        "index": index,
        "message": message,
        "logprobs": {"content": logprobs, "refusal": None} if logprobs else None,
        "finish_reason": _finish_reason(choices),
    }


def merge_completion(index: int, choices: list[dict[str, Any]]) -> dict[str, Any]:
    """The choice of a text completion from its pieces."""
    parts = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    names = ("tokens", "text_offset", "token_logprobs", "top_logprobs")
    return {
        "index": index,
        "text": "".join(choice["text"] for choice in choices),
        "logprobs": {name: [value for part in parts for value in part[name]] for name in names}
        if parts
        else None,
        "finish_reason": _finish_reason(choices),
    }


def _finish_reason(choices: list[dict[str, Any]]) -> str | None:
    return next((c["finish_reason"] for c in reversed(choices) if c["finish_reason"]), None)


def final(ended: Ended, model: str, text: str, content: str) -> dict[str, Any]:
    """How an answer has ended.

    Args:
        text: the whole answer.
        content: what is told of it here; in a stream it was told before.
    """
    return {
        "index": ended.index,
        "content": content,
        "tokens": [],
        "id_slot": ended.slot,
        "stop": True,
        "model": model,
        "tokens_predicted": ended.timings["predicted_n"],
        "tokens_evaluated": ended.n_prompt,
        "generation_settings": ended.settings,
        "prompt": ended.prompt,
        "has_new_line": "\n" in text,
        "truncated": False,
        "stop_type": ended.reason,
        "stopping_word": ended.stopped_by or "",
        "tokens_cached": ended.n_prompt + ended.timings["predicted_n"],
        "timings": ended.timings,
    }
