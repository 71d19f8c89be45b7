"""What the server does with each field of OpenAI's API, and with fields that nobody knows."""

import typing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `server` is not installed")

from openai.types import chat, completion_create_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.chat.chat_completion_content_part_param import ChatCompletionContentPartParam
from openai.types.chat.chat_completion_message_param import ChatCompletionMessageParam
from openai.types.responses import response_create_params
from pydantic import ValidationError

from snapkv_local.server import fields, responses_request
from snapkv_local.server.anthropic_request import MessagesRequest
from snapkv_local.server.responses_request import ResponsesRequest
from snapkv_local.server.schemas import ChatRequest, CompletionRequest, NativeRequest
from snapkv_local.server.words import from_validation

USER = {"role": "user", "content": "Hello"}
BODY: dict[str, Any] = {"messages": [USER]}


def names_of(*types: Any) -> set[str]:
    """The fields of typed dictionaries and models."""
    return {name for t in types for name in getattr(t, "model_fields", t.__annotations__)}


@pytest.mark.parametrize(
    ("table", "names"),
    [
        (
            responses_request.RESPONSES,
            names_of(response_create_params.ResponseCreateParamsBase) | {"stream"},
        ),
        (
            fields.CHAT,
            names_of(chat_params.CompletionCreateParamsBase) | {"stream"},
        ),
        (
            fields.COMPLETION,
            names_of(completion_create_params.CompletionCreateParamsBase) | {"stream"},
        ),
        (
            fields.MESSAGE,
            names_of(chat.ChatCompletionMessage, *typing.get_args(ChatCompletionMessageParam)),
        ),
        (fields.PART, names_of(chat.ChatCompletionContentPartTextParam)),
        (fields.STREAM_OPTIONS, names_of(chat.ChatCompletionStreamOptionsParam)),
    ],
)
def test_each_field_of_openais_api_is_in_the_table(
    table: dict[str, fields.Field], names: set[str]
) -> None:
    assert names - set(table) == set()


def test_each_kind_of_content_of_openais_api_is_read_or_refused() -> None:
    for part in typing.get_args(ChatCompletionContentPartParam):
        kind = typing.get_args(typing.get_type_hints(part)["type"])[0]
        assert kind in {*fields.PARTS, "text"}


def test_what_is_obeyed_has_a_place_in_the_models() -> None:
    models = (ChatRequest, CompletionRequest, NativeRequest, MessagesRequest, ResponsesRequest)
    for model in models:
        obeyed = {name for name, field in model.table.items() if field.is_obeyed}
        assert obeyed - {"n_predict"} <= set(model.model_fields), model
        # other APIs have their own names of what is common
        if model.table.items() >= fields.COMMON.items():
            assert obeyed - {"n_predict"} == set(model.model_fields), model


def refused(body: dict[str, Any], model: Any = ChatRequest) -> tuple[str, str | None]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    return from_validation(caught.value.errors(), body)


@pytest.mark.parametrize("name", sorted(fields.CHAT))
def test_null_is_absent(name: str) -> None:
    body = {**BODY, name: None}
    if name == "messages":
        assert refused(body) == ("messages: is missing: give it", "messages")
    else:
        assert ChatRequest.model_validate(body) == ChatRequest.model_validate(BODY)


def test_nulls_within_are_absent_too() -> None:
    message = {**USER, "tool_calls": None, "name": None, "audio": None}
    function = {"name": "f", "description": None, "parameters": {"enum": [None], "default": None}}
    body = {
        "messages": [message],
        "stream_options": {"include_usage": None},
        "tools": [{"type": "function", "function": function, "cache_control": None}],
        "snapkv": {"budget": None, "self_weight": None},
        "stop": None,
    }
    read = ChatRequest.model_validate(body)
    assert read.ignored == []
    assert read.tools is not None
    assert read.tools[0].function.parameters == function["parameters"]


@pytest.mark.parametrize(
    "given",
    [
        {"prompt_cache_key": "k"},
        {"safety_identifier": "s"},
        {"service_tier": "flex"},
        {"store": True},
        {"verbosity": "low"},
        {"user": "u", "metadata": {"a": "b"}},
        {"n": 1},
        {"modalities": ["text"]},
        {"function_call": "none", "functions": []},
        {"slot_id": 0},
        {"grammar_lazy": False, "lora": [], "n_probs": 0, "t_max_predict_ms": -1},
        {"parallel_tool_calls": False},
    ],
)
def test_what_changes_no_answer_is_accepted(given: dict[str, Any]) -> None:
    read = ChatRequest.model_validate({**BODY, **given})
    assert read == ChatRequest.model_validate(BODY)
    assert read.ignored == []


def test_openais_own_answer_goes_back_into_the_conversation() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    for said in (
        chat.ChatCompletionMessage(role="assistant", content="Good day"),
        chat.ChatCompletionMessage(role="assistant", content="Hi", annotations=[]),
        chat.ChatCompletionMessage(role="assistant", refusal="No."),
        chat.ChatCompletionMessage.model_validate({"role": "assistant", "tool_calls": [call]}),
    ):
        answer = said.model_dump()
        read = ChatRequest.model_validate({"messages": [USER, answer, USER]})
        assert read.ignored == []
        assert read.messages[1].text() == (said.content or said.refusal or "")


def test_parts_of_other_apis_are_read() -> None:
    part = {"type": "text", "text": "Hello", "cache_control": {"type": "ephemeral"}}
    said = {"type": "refusal", "refusal": "No."}
    messages = [{"role": "user", "content": [part]}, {"role": "assistant", "content": [said]}]
    read = ChatRequest.model_validate({"messages": messages})
    assert [message.text() for message in read.messages] == ["Hello", "No."]
    assert read.ignored == []


def test_llama_servers_name_of_max_tokens() -> None:
    for body, n in (({"n_predict": 7}, 7), ({"n_predict": -1}, None), ({"n_predict": None}, None)):
        assert CompletionRequest.model_validate({"prompt": "x", **body}).max_tokens == n


PICTURE = {"type": "image_url", "image_url": {"url": "data:..."}}
SOUND = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}


@pytest.mark.parametrize(
    ("given", "param", "says"),
    [
        ({"messages": [{"role": "user", "content": [PICTURE]}]}, "messages.0.content.0", "picture"),
        (
            {"messages": [USER, {"role": "user", "content": [SOUND]}]},
            "messages.1.content.0",
            "text",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, None, "files"),
        ({"messages": [{"role": "function", "content": ""}]}, "messages.0.role", "use tool"),
        ({"messages": [{**USER, "audio": {"id": "1"}}]}, "messages.0.audio", "text only"),
        ({"n": 17}, "n", "at most 16"),
        ({"n_probs": 5}, "n_probs", "logprobs"),
        ({"lora": [{"id": 0, "scale": 1}]}, "lora", "when the server starts"),
        ({"adaptive_target": 0.5}, "adaptive_target", "mirostat"),
        ({"t_max_predict_ms": 100}, "t_max_predict_ms", "max_tokens"),
        ({"samplers": ["magic"]}, "samplers.0", "'penalties'"),
        ({"continue_final_message": True}, "continue_final_message", "no other"),
        ({"add_generation_prompt": False}, "add_generation_prompt", "begins with it"),
        ({"modalities": ["text", "audio"]}, "modalities", "text only"),
        ({"functions": [{"name": "f"}]}, "functions", "as tools"),
        ({"web_search_options": {}}, "web_search_options", "no network"),
        ({"mirostat": 3}, "mirostat", "0, 1 or 2"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools.0.type", "function"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type", "only these"),
        ({"response_format": {"type": "grammar"}}, "response_format.type", "json_schema"),
        ({"snapkv": {"budgets": 1}}, "snapkv.budgets", "not known"),
        # pydantic's own, in our words
        ({"temperature": "hot"}, "temperature", "must be a number"),
        ({"temperature": 3}, "temperature", "must be at most 2"),
        ({"stream": "yes"}, "stream", "must be true or false"),
        ({"messages": "Hello"}, "messages", "must be a list"),
        ({"messages": []}, "messages", "is empty"),
        ({"messages": [{"content": "x"}]}, "messages.0.role", "is missing"),
        ({"messages": [{"role": "king", "content": ""}]}, "messages.0.role", "'user'"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "text or a list"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages.0.content.0.text",
            "is missing",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "toast", "text": ""}]}]},
            "messages.0.content.0.type",
            "must be 'text'",
        ),
        ({"stop": ""}, "stop", "is empty"),
        ({"stop": ["a"] * 17}, "stop", "more than 16"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"max_tokens": 1.5}, "max_tokens", "a whole number"),
        ({"seed": 2**70}, "seed", "at most"),
        ({"document": "a/b"}, "document", "characters"),
        ({"tool_choice": "some"}, "tool_choice", "'none', 'auto' or 'required'"),
        ({"logit_bias": {"x": "y"}}, "logit_bias.x", "must be a number or"),
    ],
)
def test_what_is_refused_says_why_in_our_words(
    given: dict[str, Any], param: str | None, says: str
) -> None:
    message, named = refused({**BODY, **given})
    assert says in message
    assert named is not None
    assert message.startswith(f"{named}: ")
    assert param in (None, named)
    for word in ("Input", "pydantic", "Extra", "valid ", "[", "str", "dict"):
        assert word not in message.removeprefix(named), message


def test_no_object_is_refused_in_our_words() -> None:
    assert refused([]) == ("body: must be an object", None)  # type: ignore[arg-type]


def test_unknown_fields_are_noted_where_they_stand() -> None:
    message = {**USER, "mood": "good"}
    read = ChatRequest.model_validate({"messages": [message], "top_a": 1, "answer": {"x": 1}})
    assert read.ignored == ["top_a", "answer", "messages.0.mood"]


def test_the_documentation_has_all_fields() -> None:
    page = (Path(__file__).parents[2] / "docs" / "server.md").read_text(encoding="utf-8")
    section = page.partition("## Fields")[2].partition("\n## Thoughts")[0]
    for table in (fields.CHAT, fields.COMPLETION, fields.MESSAGE):
        for name in table:
            assert f"`{name}`" in section, name
