"""Answers that are held to JSON schemas: what comes out fits, and no schema ends the process."""

import json
import random
import re
import time
from typing import Any

import jsonschema_rs
import llama_cpp
import pytest

from snapkv_local import Llama
from snapkv_local.errors import GrammarError
from snapkv_local.grammar.answer_grammar import AnswerGrammar

ASK = [{"role": "user", "content": "What is the capital of France?"}]
LIST_OF_NUMBERS = {"type": "array", "items": {"type": "integer"}}


@pytest.fixture(scope="module")
def model(make) -> Llama:
    return make(snapkv=None, n_ctx=512)


def walk(model: Llama, schema: Any, seed: int, most: int = 60) -> str | None:
    """A text that its masks let through, one that a model with no mind of its own would write;
    None if it did not come to its end."""
    rng = random.Random(seed)
    guide = model._ready_guide()
    grammar = AnswerGrammar.of_schema(schema)
    text = b""
    allowed = guide.open(grammar)
    ends = [token for token in range(len(allowed)) if model._ends(token)]
    closers = [guide._tokens.index(byte) for byte in (b'"', b"}", b"]", b"0")]
    for _ in range(most):
        if allowed[ends].any():
            return text.decode()
        ids = allowed.nonzero()[0]
        closing = [token for token in closers if allowed[token]]
        token = int(rng.choice(closing if closing and rng.random() < 0.5 else ids))
        attributes = llama_cpp.llama_vocab_get_attr(model._model.vocab, token)
        assert not attributes & llama_cpp.LLAMA_TOKEN_ATTR_CONTROL
        text += guide._tokens[token]
        allowed = guide.accept(grammar, token)
    return None


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 5, "maximum": 99},
        {"type": "integer", "exclusiveMinimum": -3, "exclusiveMaximum": 3},
        {"type": "integer", "multipleOf": 7, "maximum": 500, "minimum": -500},
        {"type": "number", "minimum": 0.5, "maximum": 0.75},
        {"type": "string", "minLength": 3, "maxLength": 9},
        {"type": "string", "pattern": r"^\d{2}-[A-Z]+$", "maxLength": 8},
        {"type": "string", "format": "date"},
        {"enum": ["one", 2, None, {"a": [True]}]},
        {"type": ["boolean", "null"]},
        {**LIST_OF_NUMBERS, "minItems": 1, "maxItems": 3},
        {"items": [{"const": "a"}, {"type": "boolean"}], "minItems": 2, "additionalItems": False},
        {"type": "object", "patternProperties": {"^x[0-9]$": {"const": 1}}, "maxProperties": 1},
        {"properties": {"a": {"const": 1}, "b": {"enum": [True, "b"]}}, "required": ["a"]},
        {"allOf": [{"type": "integer", "minimum": 5}, {"maximum": 9}]},
        {"oneOf": [{"type": "boolean"}, {"type": "integer", "minimum": 0, "maximum": 9}]},
        {"$ref": "#/$defs/pair", "$defs": {"pair": {**LIST_OF_NUMBERS, "maxItems": 2}}},
    ],
    ids=str,
)
def test_whatever_the_masks_let_through_fits(model, schema):
    is_old = isinstance(schema.get("items"), list)
    validator = jsonschema_rs.Draft7Validator if is_old else jsonschema_rs.Draft202012Validator
    valid = validator(schema, validate_formats=True)
    texts = [walk(model, schema, seed) for seed in range(12)]
    ended = [text for text in texts if text is not None]
    assert ended
    for text in ended:
        assert valid.is_valid(json.loads(text)), text


def test_an_answer_fits_its_schema_with_a_compact_cache(llm, document):
    schema = {
        "type": "object",
        "properties": {"room": {"type": "integer", "minimum": 200, "maximum": 250}},
        "required": ["room"],
    }
    question = f"{document[-600:]}\n\nIn which room does the cooling pump stand?"
    messages = [{"role": "user", "content": question}]
    form = {"type": "json_schema", "json_schema": {"name": "room", "schema": schema}}
    for stream in (False, True):
        answer = llm.create_chat_completion(
            messages, response_format=form, max_tokens=32, temperature=0.0, stream=stream
        )
        if stream:
            choices = [chunk["choices"][0] for chunk in answer]
            text = "".join(choice["delta"].get("content", "") for choice in choices)
        else:
            text = answer["choices"][0]["message"]["content"]
        assert 200 <= json.loads(text)["room"] <= 250
    assert llm.last_prefill.n_kept == 96


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "maxLength": 60_000},
        {"type": "string", "maxLength": 4_000},
        {"type": "string", "maxLength": 2**31 - 1},
        {"type": "string", "pattern": "^a{0,20000}$"},
    ],
    ids=str,
)
def test_long_repeats_are_answered(model, schema):
    for arguments in (
        {"response_format": {"type": "json_object", "schema": schema}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}},
    ):
        answer = model.create_chat_completion(ASK, max_tokens=2, temperature=0.0, **arguments)
        assert answer["choices"][0]["message"]["content"].startswith('"')


def test_a_function_that_must_be_called_gets_arguments_that_fit(model):
    def call(parameters: Any, **more: Any) -> str:
        function = {"name": "find", **({} if parameters is None else {"parameters": parameters})}
        answer = model.create_chat_completion(
            ASK,
            tools=[{"type": "function", "function": function}],
            tool_choice={"type": "function", "function": {"name": "find"}},
            max_tokens=24,
            temperature=0.0,
            **more,
        )
        return answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]

    city = {"city": {"$ref": "#/$defs/city"}}
    given = {"properties": city, "required": ["city"], "$defs": {"city": {"enum": ["Rome"]}}}
    assert json.loads(call(given)) == {"city": "Rome"}
    assert call({"type": "object", "properties": {}}).replace("\n", "").replace(" ", "") == "{}"
    with pytest.raises(GrammarError, match=r"find.parameters.properties.city.uniqueItems"):
        call({"properties": {"city": {"uniqueItems": True}}})


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        # each in a way that ends a process, or holds it
        ({"type": "string", "pattern": "(" * 4000 + "a" + ")" * 4000}, "schema.pattern"),
        # a fast machine runs out of the process's memory before its time
        ({"allOf": [{"pattern": f"[a-z]*{a}[a-z]*x{a}"} for a in range(20)]}, "schema.allOf[0]"),
        ({"type": "string", "pattern": "(?=a)b"}, "schema.pattern"),
        ({"oneOf": [{"type": "string"}, {"type": "string", "minLength": 1}]}, "schema.oneOf"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "schema.minimum"),
        ({"$ref": "#"}, "schema"),
        ({"const": "\ud800"}, "schema"),
    ],
    ids=range(7),
)
def test_what_is_too_much_is_refused_and_the_next_is_answered(model, schema, message):
    started = time.monotonic()
    with pytest.raises(GrammarError, match=re.escape(message)):
        model.check_grammar(AnswerGrammar.of_schema(schema))
    assert time.monotonic() - started < 120  # not for ever, on a busy machine either
    model.check_grammar(AnswerGrammar.any_object())


def test_a_schema_that_ends_its_process_is_refused(model):
    """Deeper than a reader lets through, on the stack of the native side."""
    n = 12_000
    definitions = {
        str(i): {"type": "array", "items": {"$ref": f"#/$defs/{i + 1}"}} for i in range(n)
    }
    text = json.dumps({"$ref": "#/$defs/0", "$defs": {**definitions, str(n): {"const": 1}}})
    with pytest.raises(GrammarError, match="more memory or levels than it may"):
        model.check_grammar(AnswerGrammar("schema", text))
    model.check_grammar(AnswerGrammar.any_object())


def test_a_thousand_properties_are_answered(model):
    names = {f"name{i}": {"type": "string"} for i in range(1000)}
    assert walk(model, {"type": "object", "properties": names}, 1, 200) is not None


def test_a_grammar_too_much_for_a_token_ends_the_answer(model):
    schema = {"type": "string", "pattern": "^" + "a?" * 2000 + "$"}
    with pytest.raises(GrammarError, match=r"schema\.pattern"):
        walk(model, schema, 1)


def test_a_guide_starts_again_after_its_process_is_gone(model):
    guide = model._ready_guide()
    guide.open(AnswerGrammar.any_object())
    guide._process.kill()
    with pytest.raises(GrammarError):
        guide.accept(AnswerGrammar.any_object(), 1)
    guide.open(AnswerGrammar.any_object())


@pytest.mark.parametrize("n", [4_000, 60_000])
def test_brackets_of_gbnf_are_bounded(model, n):
    grammar = llama_cpp.LlamaGrammar.from_json_schema(
        json.dumps({"maxLength": n, "type": "string"})
    )
    with pytest.raises(GrammarError, match="brackets"):
        model.create_completion("A", grammar=grammar, max_tokens=2)


def test_gbnf_that_is_none_is_refused(model):
    grammar = llama_cpp.LlamaGrammar.from_string("root ::= nothing")
    with pytest.raises(GrammarError, match="not GBNF"):
        model.create_completion("A", grammar=grammar, max_tokens=2)


def test_what_is_called_before_each_token_may_end_the_answer(model):
    calls = []

    def on_token() -> None:
        calls.append(1)
        if len(calls) == 4:
            raise InterruptedError

    model.on_token = on_token
    try:
        with pytest.raises(InterruptedError):
            model.create_completion("One, two, three, four", max_tokens=16)
    finally:
        model.on_token = None
    assert model.create_completion("One, two,", max_tokens=2)["usage"]["completion_tokens"] == 2
