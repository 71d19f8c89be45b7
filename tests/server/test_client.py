"""OpenAI's own client against the server."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

import httpx
import openai
import pytest

from snapkv_local.models.resolve import needle_model

BUDGET, MAX_TOKENS = 512, 96
MODEL = needle_model().stem
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 12},
                "unit": {"enum": ["C", "F"]},
            },
            "required": ["city", "unit"],
        },
    },
}


def ask(client: openai.OpenAI, content: str, **options: Any) -> Any:
    messages: Any = [{"role": "user", "content": content}]
    settings = {"model": MODEL, "max_tokens": 8, "temperature": 0.0, **options}
    return client.chat.completions.create(messages=messages, **settings)


def snapkv(usage: Any) -> dict[str, Any]:
    return usage.model_extra["snapkv"]


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]


def test_a_chat_is_answered(client: openai.OpenAI) -> None:
    answer = ask(client, "What is the capital of France?", max_tokens=20)
    assert answer.choices[0].message.content
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == answer.usage.total_tokens
    assert snapkv(answer.usage)["n_kept"] == answer.usage.prompt_tokens


def test_a_long_document_is_compressed_and_streamed(client: openai.OpenAI, document: str) -> None:
    question = f"{document}\n\nWhat is this text about?"
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = list(ask(client, question, **options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).strip()
    assert chunks[-1].choices[0].finish_reason == "length"
    assert last.choices == []
    figures = snapkv(last.usage)
    assert figures["n_prompt"] > 3000
    assert figures["n_kept"] == BUDGET
    assert figures["bytes_kv"] < figures["bytes_kv_full"] / 2
    assert 0 < figures["bytes_decode_cells"] < figures["bytes_kv"]
    assert 0 < figures["coverage"] <= 1
    assert figures["layer_group"] >= 1
    assert figures["compressed_now"]


def test_a_stream_and_a_whole_answer_are_the_same(client: openai.OpenAI) -> None:
    question = "Count to five."
    whole = ask(client, question, seed=3, temperature=0.7)
    stream = ask(client, question, seed=3, temperature=0.7, stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(pieces) == whole.choices[0].message.content


def test_a_conversation_goes_on_from_its_prefix(client: openai.OpenAI, document: str) -> None:
    messages: Any = [{"role": "user", "content": f"{document[:9000]}\n\nWhat is this about?"}]
    options: Any = {"model": MODEL, "max_tokens": 8, "temperature": 0.0}
    first = client.chat.completions.create(messages=messages, **options)
    assert snapkv(first.usage)["compressed_now"]
    messages += [
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "And who works there?"},
    ]
    second = client.chat.completions.create(messages=messages, **options)
    assert not snapkv(second.usage)["compressed_now"]
    assert second.usage.prompt_tokens > first.usage.total_tokens


def test_text_is_completed_up_to_a_stop(client: openai.OpenAI) -> None:
    options: Any = {"model": MODEL, "temperature": 0.0, "max_tokens": 16}
    prompt = "The pump stands in room 417. Room 417"
    whole = client.completions.create(prompt=prompt, **options).choices[0].text
    stop = whole[4:7]
    answer = client.completions.create(prompt=prompt, stop=[stop], **options)
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "choice", [{"type": "function", "function": {"name": "get_weather"}}, "required"]
)
def test_a_function_that_must_be_called_is_called(
    client: openai.OpenAI, choice: Any, stream: bool
) -> None:
    answer = ask(
        client,
        "What is the weather in Paris in C?",
        tools=[WEATHER],
        tool_choice=choice,
        max_tokens=MAX_TOKENS,
        stream=stream,
    )
    if stream:
        chunks = list(answer)
        calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
        finish_reason = chunks[-1].choices[0].finish_reason
    else:
        calls = answer.choices[0].message.tool_calls
        finish_reason = answer.choices[0].finish_reason
    assert finish_reason == "tool_calls"
    assert [call.function.name for call in calls] == ["get_weather"]
    arguments = json.loads(calls[0].function.arguments)
    assert set(arguments) == {"city", "unit"}
    assert arguments["unit"] in ("C", "F")


def test_a_call_and_its_result_go_back_into_the_conversation(client: openai.OpenAI) -> None:
    call = {"name": "get_weather", "arguments": '{"city": "Paris", "unit": "C"}'}
    messages: Any = [
        {"role": "user", "content": "What is the weather in Paris?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": call}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "21 C, sunny"},
    ]
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, tools=[WEATHER], max_tokens=8, temperature=0
    )
    assert answer.choices[0].message.content or answer.choices[0].message.tool_calls


def test_an_answer_fits_its_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"capital": {"type": "string", "maxLength": 10}},
        "required": ["capital"],
    }
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    answer = ask(client, "The capital of France?", response_format=form, max_tokens=MAX_TOKENS)
    assert set(json.loads(answer.choices[0].message.content)) == {"capital"}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "refusal"),
    [
        ({"type": "string", "maxLength": 60_000}, None),
        ({"type": "string", "maxLength": 4_000}, None),
        ({"type": "string", "pattern": "^a{0,20000}$"}, None),
        (nested(40), None),
        (nested(90), r"items is nested more than 50|levels deep"),
        ({"type": "array", "uniqueItems": True}, r"uniqueItems: this keyword"),
        ({"type": "string", "pattern": "(" * 300 + "a" + ")" * 300}, r"pattern"),
        ({"type": "integer", "multipleOf": 999_983}, r"multipleOf: 999983 is too large"),
    ],
    ids=range(8),
)
def test_no_schema_ends_the_server(
    client: openai.OpenAI, schema: dict[str, Any], refusal: str | None
) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    parameters = {"type": "object", "properties": {"text": schema}, "required": ["text"]}
    tool = {"type": "function", "function": {"name": "say", "parameters": parameters}}
    for options in (
        {"response_format": form},
        {"response_format": {"type": "json_object", "schema": schema}},
        {"tools": [tool], "tool_choice": "required"},
    ):
        if refusal is None:
            answer = ask(client, "Say something.", max_tokens=1, **options)
            assert answer.choices[0].finish_reason == "length"
        else:
            with pytest.raises(openai.BadRequestError, match=refusal) as caught:
                ask(client, "Say something.", **options)
            assert caught.value.param == ("tools" if "tools" in options else "response_format")


def test_bounds_of_numbers_are_obeyed(client: openai.OpenAI) -> None:
    age = {"type": "integer", "minimum": 200, "maximum": 250, "multipleOf": 7}
    schema = {"type": "object", "properties": {"age": age}, "required": ["age"]}
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    answer = ask(client, "How old is he?", response_format=form, max_tokens=MAX_TOKENS)
    assert json.loads(answer.choices[0].message.content)["age"] in range(203, 251, 7)


def test_functions_keep_to_their_own_definitions(client: openai.OpenAI) -> None:
    def tool(name: str, city: str) -> dict[str, Any]:
        parameters = {
            "properties": {"city": {"$ref": "#/$defs/city"}},
            "required": ["city"],
            "$defs": {"city": {"const": city}},
        }
        return {"type": "function", "function": {"name": name, "parameters": parameters}}

    tools = [tool("visit", "Rome"), tool("leave", "Oslo")]
    answer = ask(
        client, "Go.", tools=tools, tool_choice="required", max_tokens=MAX_TOKENS, temperature=1
    )
    call = answer.choices[0].message.tool_calls[0].function
    assert json.loads(call.arguments) == {"city": {"visit": "Rome", "leave": "Oslo"}[call.name]}


def test_a_function_without_parameters_takes_nothing(client: openai.OpenAI) -> None:
    tool = {"type": "function", "function": {"name": "ring"}}
    answer = ask(
        client, "Ring for Ada!", tools=[tool], tool_choice="required", max_tokens=MAX_TOKENS
    )
    assert json.loads(answer.choices[0].message.tool_calls[0].function.arguments) == {}


def test_a_request_may_ask_for_a_smaller_budget(client: openai.OpenAI, document: str) -> None:
    small = ask(client, document[:4000], extra_body={"snapkv": {"budget": 128}})
    assert snapkv(small.usage)["n_kept"] == 128
    with pytest.raises(openai.BadRequestError, match=r"need \d+ cells") as caught:
        ask(client, document[:4000], extra_body={"snapkv": {"budget": 4096}})
    assert caught.value.param == "snapkv"
    usual = ask(client, document[:4000])
    assert snapkv(usual.usage)["n_kept"] == BUDGET


def test_a_request_may_choose_the_rows(client: openai.OpenAI, document: str) -> None:
    content = f"{document[:4000]}\n\nWho is the cook?"
    usual = snapkv(ask(client, content).usage)
    own = {"policy": "question:kernel_size=21+aggregation=max", "protect_system": True}
    other = snapkv(ask(client, content, extra_body={"snapkv": own}).usage)
    assert (other["n_kept"], other["n_prompt"]) == (BUDGET, usual["n_prompt"])
    assert other["compressed_now"]
    assert 0 < other["coverage"] != usual["coverage"]
    protected = snapkv(ask(client, content, extra_body={"snapkv": {"protect_system": True}}).usage)
    assert 0 < protected["coverage"] != usual["coverage"]
    paper = {"pooling": "avg", "self_weight": 0, "kernel_size": 5, "aggregation": "sum"}
    averaged = snapkv(ask(client, content, extra_body={"snapkv": paper}).usage)
    assert 0 < averaged["coverage"] != usual["coverage"]
    assert snapkv(ask(client, content).usage)["coverage"] == usual["coverage"]

    for given, message in [
        ({"policy": "pyramid"}, "before it has seen the next one"),
        ({"policy": "best"}, "is not a policy"),
        ({"policy": "snapkv:kernel_size=7"}, "kernel_size=7"),
        ({"policy": "question", "kernel_size": 7}, "is a setting of snapkv"),
        ({"protect_system": "yes"}, "protect_system"),
    ]:
        with pytest.raises(openai.BadRequestError, match=message):
            ask(client, content, extra_body={"snapkv": given})
    with pytest.raises(openai.BadRequestError, match="the prompt has no question"):
        client.completions.create(
            model="any", prompt=document[:4000], extra_body={"snapkv": {"policy": "question"}}
        )


def test_answers_are_cut_at_the_servers_limit(client: openai.OpenAI) -> None:
    answer = ask(client, "Repeat the word no.", max_tokens=10_000)
    assert answer.usage.completion_tokens <= MAX_TOKENS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 17}, "n: "),
        ({"extra_body": {"grammar": "root ::= ("}}, "GBNF"),
        ({"extra_body": {"chat_template_kwargs": {"tools": 1}}}, "gives the template"),
        ({"logit_bias": {"999999": 1}}, "logit_bias: the model has token ids"),
        ({"temperature": 3}, "temperature: "),
        ({"tool_choice": "required"}, "not in tools"),
        (
            {"response_format": {"type": "json_object", "schema": {"$ref": "https://x.y/z"}}},
            "schema",
        ),
        ({"response_format": {"type": "json_object", "schema": {"type": "none"}}}, "schema"),
        ({"extra_body": {"snapkv": {"window_size": 600}}}, "window_size"),
        ({"extra_body": {"snapkv": {"kernel_size": 4}}}, "kernel_size"),
        ({"extra_body": {"snapkv": {"pooling": "mean"}}}, "pooling"),
        ({"extra_body": {"snapkv": {"self_weight": -1}}}, "self_weight"),
        ({"extra_body": {"snapkv": {"self_weight": 1001}}}, "self_weight"),
        ({"extra_body": {"snapkv": {"decode_cells": 4}}}, "decode_cells"),
    ],
)
def test_what_cannot_be_done_is_refused(
    client: openai.OpenAI, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        ask(client, "Hello", **options)


def test_images_and_files_are_refused(client: openai.OpenAI) -> None:
    content: Any = [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]
    with pytest.raises(openai.BadRequestError, match="pictures cannot be seen"):
        ask(client, content)


def test_an_answer_goes_back_as_it_is_and_what_is_reused_is_said(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "Who wrote Hamlet?"}]
    options: Any = {
        "model": "any",
        "max_tokens": 8,
        "temperature": 0,
        "store": True,
        "prompt_cache_key": "k",
        "reasoning_effort": "low",
        "extra_body": {"cache_prompt": False},
    }
    first = client.chat.completions.create(messages=messages, **options)
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    messages.append(first.choices[0].message.model_dump())
    messages.append({"role": "user", "content": "When?"})
    second = client.chat.completions.create(messages=messages, **options | {"extra_body": {}})
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens


def test_too_long_a_prompt_has_openais_code(client: openai.OpenAI, document: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, document * 3)
    assert caught.value.code == "context_length_exceeded"


def test_embeddings_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError, match="no embeddings") as caught:
        client.embeddings.create(model=MODEL, input="text")
    assert caught.value.status_code == 501


def test_a_wrong_key_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        ask(client.with_options(api_key="another"), "Hello")
    assert caught.value.code == "invalid_api_key"


def test_an_oversized_request_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError, match="longer than") as caught:
        ask(client, "x" * 8_000_000)
    assert caught.value.status_code == 413


def test_parallel_requests_are_all_answered(client: openai.OpenAI) -> None:
    questions = [f"What is {i} plus {i}?" for i in range(20)]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda question: ask(client, question, max_tokens=4), questions))
    assert all(answer.choices[0].message.content for answer in answers)


def metric(http: httpx.Client, name: str) -> float:
    lines = http.get("/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


def wait_for(condition: Callable[[], bool], seconds: float = 300) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.02)


def post(http: httpx.Client, content: str) -> HTTPConnection:
    """A question whose answer nobody has read yet: closing the connection is leaving."""
    body = json.dumps({"messages": [{"role": "user", "content": content}], "max_tokens": 2})
    headers = {"Authorization": http.headers["Authorization"], "Content-Type": "application/json"}
    connection = HTTPConnection(http.base_url.host, http.base_url.port)
    connection.request("POST", "/v1/chat/completions", body, headers)
    return connection


def test_a_client_that_leaves_ends_its_prefill(
    client: openai.OpenAI, http: httpx.Client, document: str
) -> None:
    cancelled = metric(http, "snapkv_cancelled_total")
    # the prefill takes seconds
    connection = post(http, "Cancelled. " + document + document[:9000])
    wait_for(lambda: metric(http, "snapkv_running") == 1)
    connection.close()
    wait_for(lambda: metric(http, "snapkv_cancelled_total") == cancelled + 1)
    wait_for(lambda: metric(http, "snapkv_running") == 0)
    assert ask(client, "Hello").choices[0].message.content


def test_a_client_that_waits_no_longer_ends_its_prefill(
    client: openai.OpenAI, http: httpx.Client, document: str
) -> None:
    with pytest.raises(openai.APITimeoutError):
        ask(client.with_options(timeout=0.7), "Late. " + document + document[:9000], max_tokens=2)
    wait_for(lambda: metric(http, "snapkv_running") == 0)
    assert ask(client, "Hello").choices[0].message.content


def test_a_stream_that_is_closed_ends_its_prefill(
    client: openai.OpenAI, http: httpx.Client, document: str
) -> None:
    messages = [{"role": "user", "content": "Closed. " + document + document[:9000]}]
    body = {"messages": messages, "stream": True, "max_tokens": 2}
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        first = next(response.iter_lines())
    assert first.startswith(": prefill ")
    wait_for(lambda: metric(http, "snapkv_running") == 0)


def test_a_closed_stream_ends_its_generation(client: openai.OpenAI, http: httpx.Client) -> None:
    stream = ask(client, "Write a long story.", max_tokens=MAX_TOKENS, stream=True)
    next(iter(stream))
    stream.close()
    wait_for(lambda: metric(http, "snapkv_running") == 0)


def test_a_client_that_leaves_is_taken_out_of_the_queue(
    client: openai.OpenAI, http: httpx.Client, document: str
) -> None:
    cancelled = metric(http, "snapkv_cancelled_total")
    # as many as there are conversations: a third one would be answered between their chunks
    running = [post(http, f"Running {i}. " + document + document[:9000]) for i in range(2)]
    wait_for(lambda: metric(http, "snapkv_running") == 2)
    waiting = post(http, "Hello")
    wait_for(lambda: metric(http, "snapkv_queue_length") == 1)
    waiting.close()
    wait_for(lambda: metric(http, "snapkv_cancelled_total") == cancelled + 1)
    assert metric(http, "snapkv_queue_length") == 0
    assert metric(http, "snapkv_running") == 2
    for connection in running:
        connection.close()
    wait_for(lambda: metric(http, "snapkv_running") == 0)
