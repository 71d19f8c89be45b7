"""The official clients of the other APIs against the server."""

import json
from typing import Any

import httpx
import openai
import pytest

KEY, MODEL_TOKENS = "a key of the tests", 64
USER: Any = {"role": "user", "content": "What is the capital of France?"}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
}


@pytest.fixture(scope="module")
def claude(server: Any) -> Any:
    """Anthropic's own client."""
    anthropic = pytest.importorskip("anthropic", reason="Anthropic's client is not installed")
    return anthropic.Anthropic(
        base_url=server.url,
        api_key=KEY,
        max_retries=0,
        timeout=300,
        http_client=anthropic.DefaultHttpxClient(trust_env=False),
    )


def test_anthropics_client_asks_and_streams(claude: Any) -> None:
    asked: Any = {"model": "any", "max_tokens": 8, "messages": [USER], "system": "Be brief"}
    exact = {"extra_body": {"temperature": 0, "cache_prompt": False}}
    whole = claude.messages.create(**asked, **exact)
    assert whole.content[0].text
    with claude.messages.stream(**asked, **exact) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens
    counted = claude.messages.count_tokens(
        model="any", messages=asked["messages"], system=asked["system"]
    )
    assert counted.input_tokens == whole.usage.input_tokens


def test_anthropics_client_calls_tools(claude: Any) -> None:
    tool: Any = {"name": "look_up", "description": "Looks up a city", "input_schema": SCHEMA}
    asked: Any = {"model": "any", "max_tokens": MODEL_TOKENS, "tools": [tool]}
    call = claude.messages.create(messages=[USER], tool_choice={"type": "any"}, **asked)
    assert call.stop_reason == "tool_use"
    (block,) = call.content
    assert block.name == "look_up"
    assert set(block.input) == {"city"}
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "Paris"}
    again = [
        USER,
        {"role": "assistant", "content": call.content},
        {"role": "user", "content": [result]},
    ]
    assert claude.messages.create(messages=again, **asked).content


def test_anthropics_client_gets_errors_of_its_own(claude: Any) -> None:
    import anthropic

    picture = {"type": "image", "source": {"type": "url", "url": "http://x"}}
    with pytest.raises(anthropic.BadRequestError, match="pictures"):
        claude.messages.create(
            model="any", max_tokens=8, messages=[{"role": "user", "content": [picture]}]
        )
    with pytest.raises(anthropic.AuthenticationError):
        claude.with_options(api_key="wrong").messages.create(
            model="any", max_tokens=8, messages=[USER]
        )
    with pytest.raises(anthropic.BadRequestError, match="context"):
        long = {"role": "user", "content": "hello " * 9000}
        claude.messages.create(model="any", max_tokens=8, messages=[long])


def test_openais_client_asks_for_responses(client: openai.OpenAI) -> None:
    asked: Any = {"model": "any", "max_output_tokens": 8, "temperature": 0}
    asked["extra_body"] = {"cache_prompt": False}
    whole = client.responses.create(input="Hello", instructions="Be brief", **asked)
    assert whole.output_text
    assert whole.usage is not None
    with client.responses.stream(input="Hello", instructions="Be brief", **asked) as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
    assert text == whole.output_text
    again = [{"role": "user", "content": "Hello"}, *whole.output, {"role": "user", "content": "?"}]
    assert client.responses.create(input=again, **asked).output_text  # type: ignore[arg-type]


def test_openais_client_gets_forms_and_calls_of_responses(client: openai.OpenAI) -> None:
    form: Any = {"format": {"type": "json_schema", "name": "city", "schema": SCHEMA}}
    asked: Any = {"model": "any", "input": [USER], "max_output_tokens": MODEL_TOKENS}
    assert set(json.loads(client.responses.create(text=form, **asked).output_text)) == {"city"}
    tool: Any = {"type": "function", "name": "look_up", "parameters": SCHEMA, "strict": True}
    call: Any = client.responses.create(tools=[tool], tool_choice="required", **asked).output[0]
    assert call.type == "function_call"
    assert set(json.loads(call.arguments)) == {"city"}
    with pytest.raises(openai.BadRequestError, match="stores no answers"):
        client.responses.create(previous_response_id="resp_1", **asked)


def test_several_answers_and_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="any", messages=[USER], max_tokens=4, n=2, logprobs=True, top_logprobs=2
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        joined = b"".join(bytes(token.bytes or []) for token in choice.logprobs.content)
        assert joined.decode(errors="ignore") == choice.message.content
    assert answer.system_fingerprint is not None
    assert answer.system_fingerprint.startswith("b")


def test_llama_servers_own(http: httpx.Client) -> None:
    content = "Hello <|im_end|> 漢"
    tokens = http.post("/tokenize", json={"content": content}).json()["tokens"]
    plain = http.post("/tokenize", json={"content": content, "parse_special": False}).json()
    assert len(plain["tokens"]) > len(tokens)
    assert http.post("/detokenize", json={"tokens": tokens}).json() == {"content": content}
    pieces = http.post("/tokenize", json={"content": content, "with_pieces": True}).json()
    assert [entry["id"] for entry in pieces["tokens"]] == tokens
    assert http.post("/detokenize", json={"tokens": [10**6]}).status_code == 400

    asked = {"prompt": tokens, "n_predict": 3, "n_probs": 2, "return_tokens": True}
    answer = http.post("/completion", json=asked).json()
    assert len(answer["tokens"]) == len(answer["completion_probabilities"]) == 3
    assert answer["timings"]["predicted_n"] == 3
    drawn = http.post("/completion", json={**asked, "post_sampling_probs": True}).json()
    for entry in drawn["completion_probabilities"]:
        assert 0 < entry["prob"] <= 1

    props = http.get("/props").json()
    assert props["default_generation_settings"]["n_ctx"] == 8192
    assert props["default_generation_settings"]["params"]["temperature"] == 0.8
    asked = {"messages": [USER], "max_tokens": 2}
    last = http.post("/v1/chat/completions", json=asked).json()["usage"]["snapkv"]["conversation"]
    slots = http.get("/slots").json()
    assert [slot["id"] for slot in slots] == list(range(props["total_slots"]))
    assert not any(slot["is_processing"] for slot in slots)
    slots = {slot["conversation"]: slot for slot in http.get("/slots?resting=true").json()}
    assert slots[last]["snapkv"]["conversation"] == last
    erased = http.post(f"/slots/{last}?action=erase", json={})
    assert erased.json() == {"id_slot": slots[last]["id"], "n_erased": slots[last]["n_tokens"]}
    assert http.post(f"/slots/{last}?action=erase", json={}).status_code == 404
    assert http.get("/v1/models").json()["data"][0]["meta"]["n_ctx"] == 8192
    chat = {"messages": [USER], "max_tokens": 1}
    assert http.post("/chat/completions", json=chat).status_code == 200
    n = http.post("/v1/chat/completions/input_tokens", json=chat).json()["input_tokens"]
    prompt = http.post("/apply-template", json=chat).json()["prompt"]
    assert n == len(http.post("/tokenize", json={"content": prompt}).json()["tokens"])
    long = {"messages": [{"role": "user", "content": "hello " * 9000}], "stream": True}
    refused = http.post("/v1/chat/completions", json=long).json()["error"]
    assert refused["type"] == "exceed_context_size_error"
    assert refused["n_prompt_tokens"] > refused["n_ctx"] == 8192
