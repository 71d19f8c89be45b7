"""How tokens are drawn, and what requests make of it."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra `server` is not installed")

from snapkv_local import Llama
from snapkv_local.errors import ConfigError
from snapkv_local.llama.draws import Draws
from snapkv_local.prompt.template import conversation
from snapkv_local.server.answer import progress_of
from snapkv_local.server.engine import Engine
from snapkv_local.server.errors import ApiError
from snapkv_local.server.resting import Resting
from snapkv_local.server.schemas import ChatRequest, CompletionRequest, NativeRequest
from snapkv_local.server.worker import Began, Chunk, Done, Ended, Found

PROMPT = "The code of the boat house is 4711. The code of the boat house"
ASK = [{"role": "user", "content": "What is the code?"}]
GREEDY = {"temperature": 0, "max_tokens": 8, "cache_prompt": False}


class NoJob:
    """Nobody waits for it, and nobody ends it."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def check(self) -> None: ...
    def emit(self, event: Any) -> None:
        self.told.append(event)


@pytest.fixture(scope="module")
def llm(make: Any) -> Llama:
    return make(snapkv=None, n_ctx=512)


@pytest.fixture(scope="module")
def engine(llm: Llama) -> Engine:
    engine = Engine(
        lambda: (llm, {}, Resting(0, None, 0)), "model", None, {"temperature": 0.8, "seed": 42}
    )
    engine.load()
    return engine


@pytest.fixture
def tokens(llm: Llama) -> Iterator[list[int]]:
    llm.reset()
    yield llm.tokenize(PROMPT.encode())
    llm.draws = None


def drawn(llm: Llama, tokens: list[int], n: int = 8, **settings: Any) -> list[int]:
    """The next n tokens."""
    llm.draws = Draws(**settings)
    found = []
    for token in llm.generate(tokens):
        found.append(token)
        if len(found) == n:
            return found
    return found


def complete(engine: Engine, prompt: Any = PROMPT, **fields: Any) -> Any:
    """An answer of POST /completion, and how it ended."""
    request = NativeRequest.model_validate({"prompt": prompt, **GREEDY, **fields})
    events = list(engine.native(request, NoJob()))  # type: ignore[arg-type]
    chunks = [event for event in events if isinstance(event, Chunk)]
    text = "".join(chunk.data["choices"][0]["text"] for chunk in chunks)
    ended = [event for event in events if isinstance(event, Ended)]
    assert [token for chunk in chunks for token in chunk.tokens] == [
        token for each in ended for token in each.tokens
    ]
    return text, ended[-1]


def test_draws_with_the_defaults_are_llama_cpps(llm: Llama, tokens: list[int]) -> None:
    llm.set_seed(5)
    expected = []
    for token in llm.generate(tokens, temp=0.8):
        expected.append(token)
        if len(expected) == 8:
            break
    llm.reset()
    assert drawn(llm, tokens, seed=5) == expected
    assert drawn(llm, tokens, seed=6) != expected


def test_at_temperature_0_the_likeliest_is_taken(llm: Llama, tokens: list[int]) -> None:
    greedy = drawn(llm, tokens, temperature=0.0)
    assert drawn(llm, tokens, temperature=0.0, seed=9) == greedy
    assert drawn(llm, tokens, top_k=1, seed=9) == greedy
    assert drawn(llm, tokens, samplers=("top_k",), top_k=1) == greedy
    assert drawn(llm, tokens, temperature=0.0, mirostat=2) == greedy
    assert drawn(llm, tokens, temperature=0.0, xtc_probability=1.0, xtc_threshold=0.01) != greedy


def test_penalties_look_at_the_prompt_too(llm: Llama, tokens: list[int]) -> None:
    red, blue, other = 300, 301, 302
    asked = {"n": 1, "temperature": 0.0, "logit_bias": {blue: 300.0, other: 200.0}}
    repeated = [red, blue] * 8 + [red]
    assert drawn(llm, repeated, **asked) == [blue]
    for settings in (
        {"repeat_penalty": 10.0},
        {"presence_penalty": 200.0},
        {"frequency_penalty": 200.0},
        {"dry_multiplier": 200.0},
    ):
        assert drawn(llm, repeated, **asked, **settings) == [other], settings
    # looking back at nothing changes nothing
    assert drawn(llm, repeated, **asked, repeat_penalty=10.0, repeat_last_n=0) == [blue]


def test_a_bias_bans_and_forces(llm: Llama, tokens: list[int]) -> None:
    greedy = drawn(llm, tokens, n=1, temperature=0.0)
    banned = drawn(llm, tokens, n=1, temperature=0.0, logit_bias={greedy[0]: -np.inf})
    assert banned != greedy
    assert drawn(llm, tokens, n=3, temperature=0.0, logit_bias={7: 1000.0}) == [7, 7, 7]


def test_what_a_token_was_drawn_from(llm: Llama, tokens: list[int]) -> None:
    found = drawn(llm, tokens, n=4, top_k=5, top_p=1.0, min_p=0.0, notes=True, seed=3)
    assert len(llm.drawn_from) == 4
    for token, candidates in zip(found, llm.drawn_from, strict=True):
        ids = [candidate for candidate, _ in candidates]
        shares = [share for _, share in candidates]
        assert token in ids
        assert len(ids) == 5
        assert sum(shares) == pytest.approx(1)
        assert shares == sorted(shares, reverse=True)


def test_logprobs_need_no_logits_of_the_prompt(llm: Llama, make: Any, engine: Engine) -> None:
    whole = make(snapkv=None, n_ctx=512, logits_all=True)
    try:
        asked = {"max_tokens": 6, "temperature": 0.0, "logprobs": 3}
        expected = whole.create_completion(PROMPT, **asked)["choices"][0]["logprobs"]
        llm.reset()
        found = llm.create_completion(PROMPT, **asked)["choices"][0]["logprobs"]
        assert found["tokens"] == expected["tokens"]
        assert found["token_logprobs"] == pytest.approx(expected["token_logprobs"], abs=0.02)
    finally:
        whole.close()
    _, ended = complete(engine, n_probs=3)
    assert ended.reason == "limit"


def test_a_request_says_how_tokens_are_drawn(engine: Engine) -> None:
    text, ended = complete(engine)
    assert ended.settings["temperature"] == 0
    assert ended.settings["seed"] == 42
    first = engine.tokens(text, False, False)[0]
    for bias in ([[first, False]], {str(first): -100}):
        assert not complete(engine, logit_bias=bias)[0].startswith(text[:3])
    assert complete(engine, ignore_eos=True, max_tokens=30)[1].reason == "limit"
    stop = text[2:5]
    cut, ended = complete(engine, stop=[stop])
    assert cut == text[: text.index(stop)]
    assert (ended.reason, ended.stopped_by) == ("word", stop)


def test_prompts_of_texts_and_tokens(engine: Engine) -> None:
    ids = engine.tokens(PROMPT, True, True)
    text, ended = complete(engine)
    assert ended.prompt.endswith(PROMPT)
    assert complete(engine, ids)[0] == text
    assert complete(engine, [PROMPT])[0] == text
    both, last = complete(engine, [ids, {"prompt_string": PROMPT}])
    assert both == text * 2
    assert last.index == 1
    assert complete(engine, [*ids[:3], engine.llm.detokenize(ids[3:]).decode()])[0]
    for wrong in ("", [], [10**8]):
        with pytest.raises((ApiError, ValueError)):
            complete(engine, wrong)


def test_several_answers_to_one_prompt(engine: Engine) -> None:
    body = {"prompt": PROMPT, "n": 3, "max_tokens": 6, "temperature": 1.5, "seed": 1, "echo": True}
    *events, done = engine.complete(CompletionRequest.model_validate(body), NoJob())  # type: ignore[arg-type]
    assert isinstance(done, Done)
    texts = ["", "", ""]
    for event in events:
        if isinstance(event, Chunk):
            choice = event.data["choices"][0]
            texts[choice["index"]] += choice["text"]
    assert len(set(texts)) == 3
    assert all(text.startswith(PROMPT) for text in texts)
    n_prompt = [event.n_prompt for event in events if isinstance(event, Began)]
    assert done.usage["prompt_tokens"] == n_prompt[0]
    assert done.usage["completion_tokens"] == 18


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        ('root ::= "a"{5,5}', "aaaaa"),
        ('root ::= "yes " item+\nitem ::= [0-9]{2}', None),
        ('root ::= "\\u00e9" "x"', "éx"),
    ],
)
def test_an_answer_is_held_to_gbnf(engine: Engine, grammar: str, text: str | None) -> None:
    found, _ = complete(engine, grammar=grammar)
    assert found == text if text else found.startswith("yes ")
    request = ChatRequest.model_validate({"messages": ASK, "grammar": grammar, **GREEDY})
    events = list(engine.chat(request, NoJob()))  # type: ignore[arg-type]
    pieces = [e.data["choices"][0]["delta"] for e in events if isinstance(e, Chunk)]
    assert pieces[0] == {"role": "assistant", "content": None}
    said = "".join(piece.get("content") or "" for piece in pieces)
    assert said == text if text else said.startswith("yes ")


@pytest.mark.parametrize(
    "grammar",
    [
        "root ::= (",
        "nothing",
        "",
        "root ::= root",
        "root ::= " + "(" * 50_000 + '"a"' + ")" * 50_000,
        'root ::= "a"{1,1000000000}',
        'root ::= (("a"{0,3000}){0,3000}){0,3000} "b"',
    ],
)
def test_no_grammar_ends_the_process(engine: Engine, grammar: str) -> None:
    """Refused, or obeyed."""
    try:
        complete(engine, grammar=grammar, max_tokens=2)
    except ApiError as e:
        assert e.status == 400
        assert e.param == "grammar"
    assert complete(engine, grammar='root ::= "a"')[0] == "a"


def test_an_answer_has_one_form(engine: Engine) -> None:
    with pytest.raises(ApiError, match="one form"):
        complete(engine, grammar='root ::= "a"', json_schema={"type": "object"})
    assert complete(engine, json_schema={"const": 5})[0] == "5"


def test_the_template_and_its_tokens(engine: Engine) -> None:
    def found(work: Any, **body: Any) -> Any:
        request = ChatRequest.model_validate({"messages": ASK, **body})
        (event,) = work(request, NoJob())
        assert isinstance(event, Found)
        return event.data

    prompt = found(engine.apply_template)["prompt"]
    assert prompt.endswith("What is the code?<|im_end|>\n<|im_start|>assistant\n")
    n = found(engine.count)["input_tokens"]
    assert n == len(engine.tokens(prompt, False, True))
    goes_on = [*ASK, {"role": "assistant", "content": "It <|im_end|> is"}]
    prompt = found(engine.apply_template, messages=goes_on)["prompt"]
    assert prompt.endswith("assistant\nIt <|im_end|> is")
    for kwargs, says in (
        ({"messages": 1}, "what the server gives"),
        ({"bos_token": "x"}, "what the server gives"),
        ({"style": "<|im_end|>"}, "control word"),
    ):
        with pytest.raises(ApiError, match=says):
            found(engine.count, chat_template_kwargs=kwargs)
    assert found(engine.count, chat_template_kwargs={"enable_thinking": False})["input_tokens"] == n


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        (
            "llama3",
            "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}[assistant] ",
            "[user] Hi[assistant] ",
        ),
    ],
)
def test_another_template(make: Any, smollm2: str, template: str, prompt: str) -> None:
    llm = make(None, smollm2, vocab_only=True)
    llm.set_chat_template(template)
    asked = [{"role": "user", "content": "Hi"}]
    assert conversation(llm, asked)[0] == prompt
    goes_on = [*asked, {"role": "assistant", "content": "Ho"}]
    assert conversation(llm, goes_on)[0] == f"{prompt}Ho"
    # control words of the model's stay text
    _, tokens = conversation(llm, [{"role": "user", "content": "<|im_end|>"}])
    assert tokens.count(llm.token_eos()) == 0


@pytest.mark.parametrize("template", ["llama99", "{% if %}"])
def test_a_template_that_is_none_is_refused(make: Any, smollm2: str, template: str) -> None:
    with pytest.raises(ConfigError, match="is no Jinja"):
        make(None, smollm2, vocab_only=True).set_chat_template(template)


def test_a_template_reads_its_options_and_thoughts(engine: Engine) -> None:
    """With a template that thinks, in the place of the model's own."""
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    (llm,) = engine.pool.llamas
    own = llm._chat_handlers["chat_template.default"]
    template = (
        "{% for m in messages %}{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}"
        "{{ m.content }}{% endfor %}{% if enable_thinking is not false %}<think>\n{% endif %}"
    )
    llm._chat_handlers["chat_template.default"] = Jinja2ChatFormatter(
        template, eos_token="", bos_token=""
    ).to_chat_handler()
    prompting = engine.prompting
    thinks, prompting.thinks = prompting.thinks, True
    try:
        for options, field in (({}, "reasoning_content"), ({"enable_thinking": False}, "content")):
            said = {"role": "assistant", "content": "x", "reasoning_content": "Hm"}
            body = {"messages": [*ASK, said, *ASK], "chat_template_kwargs": options, **GREEDY}
            request = ChatRequest.model_validate(body)
            (shown,) = engine.apply_template(request, NoJob())  # type: ignore[arg-type]
            assert "(Hm)" in shown.data["prompt"]  # type: ignore[union-attr]
            events = engine.chat(request, NoJob())  # type: ignore[arg-type]
            deltas = [e.data["choices"][0]["delta"] for e in events if isinstance(e, Chunk)]
            assert any(delta.get(field) for delta in deltas)
            assert not any(
                delta.get({"content": "reasoning_content"}.get(field, "content"))
                for delta in deltas
            )
    finally:
        prompting.thinks = thinks
        llm._chat_handlers["chat_template.default"] = own


def test_progress_begins_with_what_is_cached_and_ends_with_all(engine: Engine) -> None:
    for cached in (False, True):  # the second time all but a token is there
        body = {"prompt": PROMPT * 3, **GREEDY, "return_progress": True, "cache_prompt": cached}
        job = NoJob()
        list(engine.native(NativeRequest.model_validate(body), job))  # type: ignore[arg-type]
        first, *_, last = map(progress_of, job.told)
        assert first["processed"] == first["cache"]
        assert (first["cache"] > 0) == cached
        assert last["processed"] == last["total"]


def test_draws_are_all_named_in_requests() -> None:
    names = {field.name for field in dataclasses.fields(Draws)} - {"notes"}
    assert names <= set(ChatRequest.model_fields)
