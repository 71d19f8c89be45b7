"""Tool calls: how a model is told of functions, and how its answer becomes calls.

llama_cpp gives calls for a named function only, and lets a template say what it can of tools. Here
the model is told of the functions by its own chat template if that knows tools, else in the system
message. A call is JSON, {"name": ..., "arguments": {...}}, within <tool_call> tags where the model
may choose. tool_choice "required", or a named function, enforces it by a grammar.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

from snapkv_local.server.errors import refusal
from snapkv_local.server.schemas import ChatRequest, Message, NamedTool, Tool

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


def offered(request: ChatRequest) -> list[Tool]:
    """The functions that this answer may call.

    Raises:
        ApiError: tool_choice names none of tools, or asks for a call without tools.
    """
    tools, choice = request.tools or [], request.tool_choice
    if choice == "none":
        return []
    if isinstance(choice, NamedTool):
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
    if not tools and is_forced(request):
        raise refusal("tool_choice asks for a function that is not in tools", "tool_choice")
    return tools


def is_forced(request: ChatRequest) -> bool:
    """Whether the answer must be a call."""
    return request.tool_choice == "required" or isinstance(request.tool_choice, NamedTool)


def describe(tools: list[Tool]) -> str:
    """For the system message of a model whose template knows no tools."""
    lines = [json.dumps(tool.model_dump(exclude_none=True)["function"]) for tool in tools]
    form = f'{_OPEN}{{"name": "NAME", "arguments": {{...}}}}{_CLOSE}'
    return "\n".join(
        ["You can call these functions:", *lines, f"To call one, answer with nothing but {form}"]
    )


def to_llama(messages: list[Message], tools: list[Tool], native: bool) -> list[dict[str, Any]]:
    """Messages as a chat template takes them.

    Args:
        native: the template knows tools; otherwise calls and their results become text.
    """
    result: list[dict[str, Any]] = []
    for message in messages:
        role = "system" if message.role == "developer" else message.role
        entry: dict[str, Any] = {"role": role, "content": message.text()}
        if message.reasoning_content:
            entry["reasoning_content"] = message.reasoning_content
        calls = [(call.id, call.function) for call in message.tool_calls or []]
        if native:
            if message.name:
                entry["name"] = message.name
            if message.tool_call_id:
                entry["tool_call_id"] = message.tool_call_id
            if calls:
                entry["tool_calls"] = [
                    {
                        "id": id_,
                        "type": "function",
                        "function": {"name": f.name, "arguments": _arguments(f.arguments)},
                    }
                    for id_, f in calls
                ]
        else:
            for _, f in calls:
                call = {"name": f.name, "arguments": _arguments(f.arguments)}
                entry["content"] += f"{_OPEN}{json.dumps(call)}{_CLOSE}"
            if role == "tool":
                entry = {"role": "user", "content": f"Result of the call: {message.text()}"}
        result.append(entry)
    if tools and not native:
        if result and result[0]["role"] == "system":
            result[0]["content"] += "\n\n" + describe(tools)
        else:
            result.insert(0, {"role": "system", "content": describe(tools)})
    return result


def _arguments(text: str) -> Any:
    """Templates want an object; what is none stays text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def parse(text: str, tools: list[Tool]) -> list[dict[str, Any]]:
    """The calls in an answer, in OpenAI's form; none if it is no call of one of these functions."""
    found = []
    text = text.strip()
    bodies = text.split(_OPEN) if text.startswith(_OPEN) else ["", text]
    for body in bodies[1:]:
        try:
            call, _ = json.JSONDecoder().raw_decode(body.strip())
            name, arguments = call["name"], call.get("arguments", {})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return []
        if name not in {tool.function.name for tool in tools}:
            return []
        arguments = arguments if isinstance(arguments, str) else json.dumps(arguments)
        found.append(
            {
                "id": f"call_{uuid.uuid4().hex}",
                "type": "function",
                "function": {"name": name, "arguments": arguments},
            }
        )
    return found


def call_begins(text: str, is_start: bool) -> int | None:
    """Where in a text a call may begin; None if nowhere.

    Args:
        is_start: the text is the answer's start, where a call needs no tag.
    """
    if is_start and (blank := text.lstrip()) and blank[0] == "{":
        return 0
    at = text.find(_OPEN)
    if at >= 0:
        return at
    n = next((n for n in range(len(_OPEN) - 1, 0, -1) if text.endswith(_OPEN[:n])), 0)
    return len(text) - n if n else None


def with_calls(chunks: Iterator[dict[str, Any]], tools: list[Tool]) -> Iterator[dict[str, Any]]:
    """Chunks of a chat stream, where calls of an answer have become tool_calls.

    Text is held back only while it may be a call.
    """
    held: list[dict[str, Any]] = []
    is_start = True
    for chunk in chunks:
        choice = chunk["choices"][0]
        delta = choice["delta"]
        if "role" in delta or delta.get("reasoning_content"):
            yield chunk
            continue
        if choice["finish_reason"] is not None:
            calls = parse(_text(held), tools)
            if calls:
                entries = [{"index": i, **call} for i, call in enumerate(calls)]
                yield _with(chunk, {"tool_calls": entries}, None)
                yield _with(chunk, {}, "tool_calls")
                return
            yield from held
            yield chunk
            return
        held.append(chunk)
        text = _text(held)
        at = call_begins(text, is_start)
        if at is None and text.strip():
            yield from held
            held, is_start = [], False
        elif at is not None and text[:at].strip():
            # what stands before it is text, and has the chunk's logprobs
            *before, last = held
            yield from before
            choice = last["choices"][0]
            said = choice["delta"].get("content") or ""
            n = at - len(_text(before))
            logprobs = choice.get("logprobs")
            if n:
                yield _with(last, {"content": said[:n]}, None, logprobs)
            held = [_with(last, {"content": said[n:]}, None, None if n else logprobs)]
            is_start = False


def _text(chunks: list[dict[str, Any]]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


def _with(
    chunk: dict[str, Any], delta: dict[str, Any], finish: str | None, logprobs: Any = None
) -> dict[str, Any]:
    choice = {**chunk["choices"][0], "delta": delta, "finish_reason": finish, "logprobs": logprobs}
    return {**chunk, "choices": [choice]}
