"""What each API makes of a request, and of the events of an answer. No model is there."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `server` is not installed")

from pydantic import ValidationError

from snapkv_local.server.answer import OpenAIForm, merge_chat
from snapkv_local.server.anthropic_answer import AnthropicForm
from snapkv_local.server.anthropic_request import MessagesRequest
from snapkv_local.server.errors import ApiError, anthropic_body
from snapkv_local.server.native_answer import NativeForm
from snapkv_local.server.responses_answer import ResponsesForm
from snapkv_local.server.responses_request import ResponsesRequest
from snapkv_local.server.schemas import ChatRequest, NativeRequest, Tool, prompts
from snapkv_local.server.thoughts import with_thoughts
from snapkv_local.server.timings import Timings
from snapkv_local.server.tools import with_calls
from snapkv_local.server.words import from_validation
from snapkv_local.server.worker import Began, Chunk, Done, Ended, Event, Failed, Progress

USER = {"role": "user", "content": "Hello"}
TIMINGS = Timings(1, 2, 0.5, 4, 2.0).json()
USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 4,
    "total_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 1},
    "snapkv": {},
}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "f", "arguments": '{"a": 1}'},
}
F = Tool.model_validate({"type": "function", "function": {"name": "f"}})


def piece(delta: dict[str, Any], finish: str | None = None, index: int = 0) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return {**head, "choices": [choice]}


def ended(stopped_by: str | None = None, index: int = 0) -> Ended:
    reason = "eos" if stopped_by is None else "word"
    return Ended(index, "<s>Hello", 3, 1, (5, 6), reason, stopped_by, TIMINGS, {"seed": 7})


def answer(*deltas: dict[str, Any], finish: str = "stop", stopped_by: str | None = None) -> Any:
    """The events of one answer."""
    yield Progress(1, 2, 3, 1)
    yield Began(3, 1)
    yield Chunk(piece({"role": "assistant", "content": None}))
    for delta in deltas:
        yield Chunk(piece(delta))
    yield Chunk(piece({}, finish))
    yield ended(stopped_by)
    yield Done(USAGE, TIMINGS)


def read(texts: Iterator[str]) -> list[Any]:
    """The JSON of server-sent events, whose name is that of their type."""
    found = []
    for text in texts:
        name, _, data = text.rpartition("data: ")
        if text.startswith(":") or data.startswith("[DONE]"):
            continue
        found.append(json.loads(data))
        if name:
            assert name == f"event: {found[-1]['type']}\n"
    return found


def told(form: Any, events: Iterator[Event]) -> list[Any]:
    return [data for event in events for data in read(form.events(event))]


# Anthropic


def test_a_message_is_told_block_by_block() -> None:
    deltas = (
        {"reasoning_content": "Hm"},
        {"content": "Good"},
        {"content": " day"},
        {"tool_calls": [{"index": 0, **CALL}]},
    )
    events = told(AnthropicForm("m"), answer(*deltas, finish="tool_calls"))
    kinds = [event["type"].removeprefix("content_block_") for event in events]
    assert kinds == [
        "message_start",
        *("start", "delta", "delta", "stop"),
        *("start", "delta", "delta", "stop"),
        *("start", "delta", "stop"),
        *("message_delta", "message_stop"),
    ]
    assert events[0]["message"]["content"] == []
    assert events[0]["message"]["usage"]["input_tokens"] == 2
    assert events[0]["message"]["usage"]["cache_read_input_tokens"] == 1
    blocks = [event["content_block"]["type"] for event in events if "content_block" in event]
    assert blocks == ["thinking", "text", "tool_use"]
    assert [event["index"] for event in events if "index" in event] == [0] * 4 + [1] * 4 + [2] * 3
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == 4

    whole = AnthropicForm("m").whole(list(answer(*deltas, finish="tool_calls")))
    assert whole["content"] == [
        {"type": "thinking", "thinking": "Hm", "signature": ""},
        {"type": "text", "text": "Good day"},
        {"type": "tool_use", "id": "call_1", "name": "f", "input": {"a": 1}},
    ]
    assert whole["stop_reason"] == "tool_use"


@pytest.mark.parametrize(
    ("finish", "stopped_by", "reason"),
    [
        ("stop", None, "end_turn"),
        ("stop", "END", "stop_sequence"),
        ("length", None, "max_tokens"),
    ],
)
def test_why_a_message_ends(finish: str, stopped_by: str | None, reason: str) -> None:
    events = list(answer({"content": "x"}, finish=finish, stopped_by=stopped_by))
    whole = AnthropicForm("m").whole(events)
    assert (whole["stop_reason"], whole["stop_sequence"]) == (reason, stopped_by)


def test_errors_of_anthropic() -> None:
    error = ApiError(503, "no memory", code="out_of_memory")
    assert read(AnthropicForm("m").events(Failed(error))) == [anthropic_body(error)]
    assert anthropic_body(error)["error"]["type"] == "overloaded_error"
    assert anthropic_body(ApiError(400, "x"))["error"]["type"] == "invalid_request_error"
    assert anthropic_body(ApiError(500, "x"))["error"]["type"] == "api_error"


def messages_request(**given: Any) -> MessagesRequest:
    return MessagesRequest.model_validate({"max_tokens": 9, "messages": [USER], **given})


def test_blocks_become_a_chat() -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "Once"}
    cached = {"cache_control": {"type": "ephemeral"}}
    turns = [
        {"role": "user", "content": [{"type": "document", "title": "A book", "source": source}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm", "signature": "s"},
                {"type": "redacted_thinking", "data": "?"},
                {"type": "text", "text": "One moment", "citations": None},
                {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "And?", **cached},
                {"type": "tool_result", "tool_use_id": "1", "content": "none", "is_error": True},
            ],
        },
    ]
    tool = {"name": "f", "description": "does", "input_schema": {"type": "object"}, **cached}
    request = messages_request(
        messages=turns,
        system=[{"type": "text", "text": "Be brief", **cached}],
        tools=[tool],
        tool_choice={"type": "tool", "name": "f"},
        stop_sequences=["END"],
        top_k=3,
        seed=4,
        snapkv={"budget": 5},
        metadata={"user_id": "u"},
    )
    assert request.ignored == []
    chat = request.chat()
    assert [message.role for message in chat.messages] == [
        *("system", "user", "assistant", "tool", "user")
    ]
    assert chat.messages[1].text() == "A book\nOnce"
    assert chat.messages[2].reasoning_content == "Hm"
    assert chat.messages[2].text() == "One moment"
    assert json.loads(chat.messages[2].tool_calls[0].function.arguments) == {"a": 1}  # type: ignore[index]
    assert chat.messages[3].text() == "Error: none"
    assert chat.tools is not None
    assert chat.tools[0].function.parameters == {"type": "object"}
    assert chat.tool_choice.function.name == "f"  # type: ignore[union-attr]
    assert (chat.stops(), chat.top_k, chat.seed, chat.max_tokens) == (["END"], 3, 4, 9)
    assert chat.snapkv is not None
    assert chat.snapkv.budget == 5


def test_a_checksum_makes_no_new_prompt() -> None:
    head = "x-anthropic-billing-header: cc_version=2.1.101.e51; cch="
    first, second = (
        messages_request(system=f"{head}{checksum};You are a tool").chat().messages[0].text()
        for checksum in ("a5145", "0bc12")
    )
    assert first == second == f"{head}fffff;You are a tool"
    other = "The header cch=a5145; stays"
    assert messages_request(system=other).chat().messages[0].text() == other


def test_forms_and_thinking_of_anthropic() -> None:
    form = {"format": {"type": "json_schema", "schema": {"type": "object"}}, "effort": "low"}
    chat = messages_request(output_config=form, thinking={"type": "disabled"}).chat()
    assert chat.response_format is not None
    assert chat.response_format.json_schema is not None
    assert chat.response_format.json_schema.schema_ == {"type": "object"}
    assert chat.chat_template_kwargs == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("given", "param", "says"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, None, "pictures"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "tool_result",
                                "tool_use_id": "1",
                                "content": [{"type": "image", "source": {}}],
                            }
                        ],
                    }
                ]
            },
            "messages.0.content.0.content.0",
            "pictures",
        ),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools.0.type", "Anthropic's"),
        ({"container": "c"}, "container", "no container"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers", "as tools"),
        ({"messages": 5}, "messages", "must be a list"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
    ],
)
def test_what_anthropics_requests_are_refused_for(
    given: dict[str, Any], param: str | None, says: str
) -> None:
    body = {"messages": [USER], **given}
    with pytest.raises(ValidationError) as caught:
        MessagesRequest.model_validate(body)
    message, named = from_validation(caught.value.errors(), body)
    assert says in message
    assert param in (None, named)


def test_unknown_fields_of_anthropic_are_noted() -> None:
    turn = {"role": "user", "content": [{"type": "text", "text": "x", "mood": "good"}]}
    request = messages_request(messages=[turn], colour="red")
    assert request.ignored == ["colour", "messages.0.content.0.mood"]


# OpenAI's Responses


def test_a_response_is_told_item_by_item() -> None:
    request = ResponsesRequest.model_validate({"input": "Hello", "stream": True})
    deltas = (
        {"reasoning_content": "Hm"},
        {"content": "Good"},
        {"content": " day"},
        {"tool_calls": [{"index": 0, **CALL}]},
    )
    events = told(ResponsesForm("m", request), answer(*deltas, finish="tool_calls"))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added", "reasoning_text.delta"),
        *("reasoning_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done"),
        "completed",
    ]
    response = events[-1]["response"]
    assert [item["type"] for item in response["output"]] == [
        *("reasoning", "message", "function_call")
    ]
    assert response["output"][1]["content"][0]["text"] == "Good day"
    assert response["output"][2]["arguments"] == '{"a": 1}'
    assert response["usage"]["input_tokens_details"]["cached_tokens"] == 1
    whole = ResponsesForm("m", request).whole(list(answer(*deltas, finish="tool_calls")))
    assert [item["type"] for item in whole["output"]] == [i["type"] for i in response["output"]]


def test_openais_client_reads_what_is_told() -> None:
    from openai.types.responses import Response, ResponseStreamEvent
    from pydantic import TypeAdapter

    request = ResponsesRequest.model_validate({"input": "Hello"})
    adapter: Any = TypeAdapter(ResponseStreamEvent)
    for data in told(ResponsesForm("m", request), answer({"content": "Good"})):
        adapter.validate_python(data)
    whole = ResponsesForm("m", request).whole(list(answer({"content": "Good"}, finish="length")))
    response = Response.model_validate(whole)
    assert response.output_text == "Good"
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"


def test_a_response_that_fails() -> None:
    request = ResponsesRequest.model_validate({"input": "Hello"})
    *_, failed = read(ResponsesForm("m", request).events(Failed(ApiError(500, "no", code="c"))))
    assert failed["type"] == "response.failed"
    assert failed["response"]["error"] == {"code": "c", "message": "no"}


def test_items_become_a_chat() -> None:
    thought = {"type": "reasoning_text", "text": "Hm"}
    yes = {"type": "output_text", "text": "Yes", "annotations": []}
    items = [
        {"role": "developer", "content": "Be brief"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "reasoning", "id": "1", "summary": [], "content": [thought]},
        {"type": "message", "role": "assistant", "id": "2", "status": "done", "content": [yes]},
        {"type": "function_call", "id": "3", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "3"},
    ]  # fmt: skip
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
    request = ResponsesRequest.model_validate(
        {
            "input": items,
            "instructions": "First",
            "tools": [tool],
            "tool_choice": {"type": "function", "name": "f"},
            "max_output_tokens": 5,
            "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
        }
    )
    assert request.ignored == []
    chat = request.chat()
    roles = [message.role for message in chat.messages]
    assert roles == ["system", "developer", "user", "assistant", "tool"]
    said = chat.messages[3]
    assert (said.text(), said.reasoning_content) == ("Yes", "Hm")
    assert said.tool_calls is not None
    assert said.tool_calls[0].id == chat.messages[4].tool_call_id == "c"
    assert chat.max_tokens == 5
    assert chat.response_format is not None
    assert chat.response_format.type == "json_schema"


def test_functions_of_a_namespace_have_its_name_before_theirs() -> None:
    close = {"type": "function", "name": "close", "parameters": {"type": "object"}}
    called = {"type": "function_call", "call_id": "c"}
    request = ResponsesRequest.model_validate(
        {
            "input": [
                {"role": "user", "content": "Close it"},
                {**called, "name": "close", "namespace": "agents", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "no"},
            ],
            "tools": [
                {**close, "name": "read"},
                {"type": "namespace", "name": "agents", "description": "Agents", "tools": [close]},
            ],
            "tool_choice": {"type": "function", "name": "close"},
            "client_metadata": {"session": "s"},
        }
    )  # fmt: skip
    assert request.ignored == []
    chat = request.chat()
    assert [tool.function.name for tool in chat.tools or []] == ["read", "agents__close"]
    assert chat.messages[1].tool_calls is not None
    assert chat.messages[1].tool_calls[0].function.name == "agents__close"
    function = {"name": "agents__close", "arguments": "{}"}
    call = {"index": 0, "id": "call_1", "type": "function", "function": function}
    whole = ResponsesForm("m", request).whole(list(answer({"tool_calls": [call]})))
    (item,) = whole["output"]
    assert (item["type"], item["namespace"], item["name"]) == ("function_call", "agents", "close")
    assert [tool["type"] for tool in whole["tools"]] == ["function", "namespace"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"previous_response_id": "r"}, "stores no answers"),
        ({"conversation": "c"}, "stores no answers"),
        ({"background": True}, "leave it out"),
        ({"tools": [{"type": "web_search"}]}, "OpenAI's servers"),
        ({"input": [{"type": "item_reference", "id": "1"}]}, "not there"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "pictures"),
    ],
)
def test_what_responses_are_refused_for(given: dict[str, Any], says: str) -> None:
    body = {"input": "Hello", **given}
    with pytest.raises(ValidationError) as caught:
        ResponsesRequest.model_validate(body)
    assert says in from_validation(caught.value.errors(), body)[0]


# llama-server's own


def text_piece(text: str, finish: str | None = None, index: int = 0) -> dict[str, Any]:
    return {"choices": [{"index": index, "text": text, "logprobs": None, "finish_reason": finish}]}


def test_a_completion_in_llama_servers_form() -> None:
    request = NativeRequest.model_validate({"prompt": "x", "stream": True, "return_progress": True})
    events = [
        Progress(0, 4, 3, 1),
        Began(3, 1),
        Chunk(text_piece("a\n"), (5,)),
        Chunk(text_piece("b"), (6,)),
        Chunk(text_piece("", "stop")),
        ended("END"),
        Done(USAGE),
    ]
    progress, first, second, last = told(NativeForm("m", request), iter(events))
    assert progress["prompt_progress"] | {"time_ms": 0} == {
        "total": 3, "cache": 1, "processed": 1, "time_ms": 0,
    }  # fmt: skip
    assert (first["content"], first["tokens"], first["stop"]) == ("a\n", [5], False)
    assert second["tokens_predicted"] == 2
    assert last["stop"]
    assert (last["content"], last["stop_type"], last["stopping_word"]) == ("", "word", "END")
    assert last["has_new_line"]
    assert last["timings"]["prompt_n"] == 2

    whole = NativeForm("m", NativeRequest.model_validate({"prompt": "x"})).whole(events)
    assert (whole["content"], whole["tokens"], whole["prompt"]) == ("a\nb", [], "<s>Hello")
    some = NativeRequest.model_validate(
        {"prompt": ["x"], "response_fields": ["content", "generation_settings/seed", "no/where"]}
    )
    assert NativeForm("m", some).whole(events) == [
        {"content": "a\nb", "generation_settings/seed": 7}
    ]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", [["a"]]),
        ([1, 2], [[1, 2]]),
        ([1, "a", 2], [[1, "a", 2]]),
        (["a", "b"], [["a"], ["b"]]),
        ([[1, 2], "a", {"prompt_string": "b"}], [[1, 2], ["a"], ["b"]]),
        ({"prompt_string": "a"}, [["a"]]),
    ],
)
def test_one_prompt_or_several(prompt: Any, expected: Any) -> None:
    assert prompts(NativeRequest.model_validate({"prompt": prompt}).prompt) == expected


def test_prompts_with_pictures_are_refused() -> None:
    with pytest.raises(ValidationError):
        NativeRequest.model_validate({"prompt": {"prompt_string": "a", "multimodal_data": "x"}})


# OpenAI's chats


def test_several_answers_are_told_apart() -> None:
    request = ChatRequest.model_validate({"messages": [USER], "n": 2, "verbose": True})
    events = [
        Chunk(piece({"content": "a"})),
        Chunk(piece({}, "stop")),
        ended(),
        Chunk(piece({"content": "b"}, index=1)),
        Chunk(piece({}, "length", index=1)),
        ended(index=1),
        Done(USAGE, TIMINGS),
    ]
    whole = OpenAIForm(merge_chat, request).whole(events)
    found = [(c["index"], c["message"]["content"], c["finish_reason"]) for c in whole["choices"]]
    assert found == [(0, "a", "stop"), (1, "b", "length")]
    assert whole["__verbose"]["prompt"] == "<s>Hello"
    assert whole["timings"] == TIMINGS


def test_progress_is_told_where_it_is_asked_for() -> None:
    body = {"messages": [USER], "stream": True}
    comment = OpenAIForm(merge_chat, ChatRequest.model_validate(body)).events(Progress(1, 2, 3, 1))
    assert list(comment) == [": prefill 1/2\n\n"]
    asked = ChatRequest.model_validate({**body, "return_progress": True})
    (data,) = read(OpenAIForm(merge_chat, asked).events(Progress(1, 2, 5, 1)))
    assert data["prompt_progress"]["processed"] == 3


def deltas_of(chunks: Iterator[dict[str, Any]]) -> list[tuple[str, str]]:
    """Fields and texts, neighbours of one field joined."""
    found: list[tuple[str, str]] = []
    for chunk in chunks:
        for name, text in chunk["choices"][0]["delta"].items():
            if found and found[-1][0] == name:
                found[-1] = (name, found[-1][1] + text)
            elif isinstance(text, str):
                found.append((name, text))
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("text", "begun", "thought", "said"),
    [
        ("<think>\nHm, < or </b>?\n</think>\n\nGood <think>", False, "Hm, < or </b>?", "Good <think>"),
        ("Hm\n</think>Good", True, "Hm", "Good"),
        (" Good <think>day</think>", False, "", " Good <think>day</think>"),
        ("<thin", False, "", "<thin"),
        ("<think>Hm</thi", False, "Hm</thi", ""),
        ("<think></think>Good", False, "", "Good"),
        ("<think> a  b </think> ", False, "a  b", ""),
    ],
)  # fmt: skip
def test_thoughts_are_told_from_text_however_tokens_cut_it(
    size: int, text: str, begun: bool, thought: str, said: str
) -> None:
    parts = [text[i : i + size] for i in range(0, len(text), size)]
    chunks = [piece({"role": "assistant"}), *(piece({"content": p}) for p in parts)]
    out = list(with_thoughts(iter([*chunks, piece({}, "stop")]), lambda: begun))
    assert out[-1]["choices"][0]["finish_reason"] == "stop"
    found = dict(deltas_of(iter(out[1:])))
    assert found.get("reasoning_content", "") == thought
    assert found.get("content", "") == said


@pytest.mark.parametrize("size", [1, 3, 8, 100])
@pytest.mark.parametrize(
    ("text", "said", "n_calls"),
    [
        ('<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>', "", 1),
        ('{"name": "f", "arguments": {}}', "", 1),
        ('I look. <tool_call>{"name": "f"}</tool_call><tool_call>{"name": "f"}', "I look. ", 2),
        ("I look <tool and <tool_call", "I look <tool and <tool_call", 0),
        ('a {"name": "f"}', 'a {"name": "f"}', 0),
        ('<tool_call>{"name": "g"}</tool_call>', '<tool_call>{"name": "g"}</tool_call>', 0),
    ],
)
def test_calls_are_told_from_text_however_tokens_cut_it(
    size: int, text: str, said: str, n_calls: int
) -> None:
    parts = [text[i : i + size] for i in range(0, len(text), size)]
    chunks = [piece({"role": "assistant"}), *(piece({"content": p}) for p in parts)]
    out = list(with_calls(iter([*chunks, piece({}, "stop")]), [F]))
    calls = [c for chunk in out for c in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert len(calls) == n_calls
    assert out[-1]["choices"][0]["finish_reason"] == ("tool_calls" if n_calls else "stop")
    told = "".join(text for name, text in deltas_of(iter(out)) if name == "content")
    assert (told.strip() if n_calls else told) == (said.strip() if n_calls else said)


def test_timings_add_up() -> None:
    both = (Timings(1, 2, 0.5, 4, 2.0) + Timings(1, 0, 0.5, 4, 2.0)).json()
    assert both["cache_n"] == 2
    assert both["prompt_ms"] == 1000
    assert both["predicted_per_second"] == 2
    assert Timings().json()["prompt_per_second"] == 0
