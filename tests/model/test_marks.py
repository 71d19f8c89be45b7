"""What a chat says of its prompt: the system prompt stays, the question votes."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from snapkv_local import Llama, SnapKVConfig
from snapkv_local.errors import ConfigError
from snapkv_local.prompt import vocabulary

WINDOW, BUDGET = 16, 96
CONFIG = SnapKVConfig(budget=BUDGET, window_size=WINDOW, decode_cells=64, protect_system=True)
SYSTEM = {
    "role": "system",
    "content": "You speak for the keeper of a lighthouse. Say where in the text you have it from, and "
    "never give away the number of the safe.",
}
N_SYSTEM = 42  # of the chat, up to the user's text
N_QUESTION, N_AFTER = 7, 7  # of "Who keeps the light?", and of what the chat writes after it


@pytest.fixture(scope="module")
def make(make: Callable[..., Llama], model_with_system: str) -> Callable[..., Llama]:
    return partial(make, path=model_with_system)


@pytest.fixture(scope="module")
def text(document: str) -> str:
    return document[:1200]


@pytest.fixture(scope="module")
def chatting(make: Callable[..., Llama]) -> Llama:
    return make(CONFIG)


def spell(llm: Llama, span: tuple[int, int]) -> str:
    tokens = llm._input_ids[slice(*span)].tolist()
    return b"".join(vocabulary.pieces(llm, tokens)).decode()


def ask(llm: Llama, *messages: dict[str, str], n: int = 2, **options: Any) -> None:
    """An answer of n tokens, as a stream is read."""
    arguments = {"max_tokens": n, "temperature": 0.0, **options}
    for _ in llm.create_chat_completion(messages=list(messages), stream=True, **arguments):
        pass


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def heads(llm: Llama) -> list[set[int]]:
    kept = llm.kept_positions()
    return [set(head) for head in kept.reshape(-1, kept.shape[-1])]


def jaccard(some: list[set[int]], others: list[set[int]]) -> float:
    """Mean over layers and KV heads."""
    return mean(len(a & b) / len(a | b) for a, b in zip(some, others, strict=True))


def test_the_system_prompt_stays(chatting: Llama, make: Callable[..., Llama], text: str) -> None:
    question = user(f"{text}\n\nWho keeps the light?")
    ask(chatting, SYSTEM, question)
    assert spell(chatting, (0, N_SYSTEM)).endswith("of the safe.<|im_end|>\n<|im_start|>user\n")
    system = set(range(N_SYSTEM))
    assert all(system <= head for head in heads(chatting))
    assert len(heads(chatting)[0]) == BUDGET - WINDOW

    # without the setting most of it goes
    plain = make(replace(CONFIG, protect_system=False))
    ask(plain, SYSTEM, question)
    assert not all(system <= head for head in heads(plain))

    # another one, which is the template's own
    ask(chatting, question)
    n = next(i for i in range(100) if spell(chatting, (0, i)).endswith("<|im_start|>user\n"))
    assert n != N_SYSTEM
    assert all(set(range(n)) <= head for head in heads(chatting))
    assert not all(set(range(N_SYSTEM)) <= head for head in heads(chatting))


def test_a_text_has_no_system_prompt(chatting: Llama, text: str) -> None:
    ask(chatting, SYSTEM, user(f"{text}\n\nWho keeps the light?"))
    chatting.create_completion(text, max_tokens=2)
    assert not all(set(range(N_SYSTEM)) <= head for head in heads(chatting))
    # what a caller protects stays beside it
    chatting.set_protected([(100, 110)])
    ask(chatting, SYSTEM, user(f"{text}\n\nWho keeps the light?"))
    chatting.set_protected([])
    assert all({*range(N_SYSTEM), *range(100, 110)} <= head for head in heads(chatting))


@pytest.mark.parametrize("settings", [{}, {"vault": "ram"}, {"policy": "streaming"}])
def test_it_stays_when_rows_are_evicted_again(
    make: Callable[..., Llama], settings: dict[str, Any], text: str
) -> None:
    llm = make(replace(CONFIG, **settings))
    ask(llm, SYSTEM, user("Tell me a story."), n=130)
    assert llm.evictions
    assert all(set(range(N_SYSTEM)) <= head for head in heads(llm))


def test_a_conversation_that_goes_on(chatting: Llama, text: str) -> None:
    turns = [SYSTEM, user(f"{text}\n\nWho keeps the light?")]
    ask(chatting, *turns)
    turns += [{"role": "assistant", "content": "A man"}, user(f"And then?\n\n{text[:300]}")]
    ask(chatting, *turns)
    assert all(set(range(N_SYSTEM)) <= head for head in heads(chatting))


def test_a_system_prompt_that_does_not_fit(chatting: Llama, text: str) -> None:
    long = {"role": "system", "content": text[:500]}
    with pytest.raises(ConfigError, match=r"does not hold .* such as the system prompt's"):
        ask(chatting, long, user(f"{text}\n\nWho keeps the light?"))
    ask(chatting, SYSTEM, user(f"{text}\n\nWho keeps the light?"))
    assert chatting.last_prefill is not None


@pytest.mark.parametrize("vault", ["off", "ram"])
def test_the_question_votes(make: Callable[..., Llama], text: str, vault: str) -> None:
    llm = make(replace(CONFIG, policy="question:aggregation=max", vault=vault))
    turns = [SYSTEM, user(f"{text}\n\nWho keeps the light?")]
    ask(llm, *turns)
    assert llm.last_prefill is not None
    by_chat = llm.kept_positions().tolist()
    prompt = llm._input_ids[: llm.n_prompt].tolist()

    n = llm.n_prompt
    span = next(
        (i, n - N_AFTER) for i in range(n) if spell(llm, (i, n)).startswith("Who keeps the")
    )
    assert spell(llm, span) == "Who keeps the light?"
    llm.clear_vault()
    llm.set_question(span)
    llm.set_protected([(0, N_SYSTEM)])
    llm.prefill(prompt)
    assert llm.kept_positions().tolist() == by_chat
    llm.set_question((span[0], span[1] - 1))
    llm.prefill(prompt)
    assert llm.kept_positions().tolist() != by_chat
    llm.set_question(None)
    llm.set_protected([])

    # the next turn has its own question
    turns += [{"role": "assistant", "content": "A man"}, user(f"{text[:300]}\n\nWho, again?")]
    ask(llm, *turns)
    begin, end = llm._marks.of(llm, llm.snapkv, llm._input_ids).question
    assert spell(llm, (begin, end)) == "Who, again?"

    with pytest.raises(ConfigError, match=r"the prompt has no question; .*Llama.set_question\(\)"):
        llm.create_completion(text, max_tokens=2)


def test_chats_one_inside_the_other(make: Callable[..., Llama], text: str) -> None:
    """What a stream is asked is not forgotten before it is read."""
    llm = make(replace(CONFIG, policy="question"))
    turn = user(f"{text}\n\nWho keeps the light?")
    stream = llm.create_chat_completion(messages=[turn], max_tokens=2, stream=True)
    with pytest.raises(ConfigError, match="no question"):
        llm.create_completion(text, max_tokens=2)
    assert len(list(stream)) > 1
    assert llm._marks.chat is None


def test_a_document_in_a_file(make: Callable[..., Llama], text: str, tmp_path: Path) -> None:
    """It is written without a question, and each question about it then votes."""
    config = replace(CONFIG, policy="question", vault="ram")
    llm = make(config)
    document = llm.ingest(text, tmp_path / "book.snapkv")
    assert llm.snapkv == config
    other = make(config)
    other.open_document(document.path)
    question = user(f"{document.text}\n\nWho keeps the light?")
    ask(other, question)
    assert other.last_prefill.n_cached > 200
    begin, end = other._marks.of(other, other.snapkv, other._input_ids).question
    assert spell(other, (begin, end)) == "Who keeps the light?"
    ask(llm, question)
    assert llm.kept_positions().tolist() == other.kept_positions().tolist()


@pytest.mark.parametrize("protects", [False, True])
@pytest.mark.parametrize("ops", ["fused", "ggml"])
def test_the_question_votes_in_the_engine(
    make: Callable[..., Llama], text: str, ops: str, protects: bool
) -> None:
    """The rows that the policy in Python chooses, but for what rounding swaps."""
    config = replace(CONFIG, protect_system=protects)
    turns = [SYSTEM, user(f"{text}\n\nWho keeps the light?")]
    chooses = make(
        replace(
            config, policy="question:kernel_size=21+self_weight=0.25+pooling=nosink+aggregation=max"
        )
    )
    ask(chooses, *turns)
    engine = make(replace(config, ops=ops))
    ask(engine, *turns)
    assert jaccard(heads(engine), heads(chooses)) > 0.99
    stats = engine.last_prefill
    assert (stats.n_voters, stats.n_after_voters) == (N_QUESTION, N_AFTER)
    assert 0 < stats.coverage < 1

    # the last tokens vote where they are asked to
    engine.set_snapkv(replace(config, ops=ops, observation=16))
    ask(engine, *turns)
    assert jaccard(heads(engine), heads(chooses)) < 0.97
    assert (engine.last_prefill.n_voters, engine.last_prefill.n_after_voters) == (16, 0)

    # and in a text, which has no question but one that is named
    engine.set_snapkv(replace(config, ops=ops))
    prompt = chooses._input_ids[: chooses.n_prompt].tolist()
    engine.prefill(prompt)
    assert engine.last_prefill.n_voters == 16
    engine.set_question((len(prompt) - N_QUESTION - N_AFTER, len(prompt) - N_AFTER))
    if protects:
        engine.set_protected([(0, N_SYSTEM)])
    engine.prefill(prompt)
    assert jaccard(heads(engine), heads(chooses)) > 0.99
    engine.set_question((len(prompt) - 40, len(prompt) - 20))  # before the window
    assert engine.prefill(prompt).n_voters == 16


@pytest.mark.parametrize(
    ("content", "n_voters", "n_after"),
    [
        ("{text}\n\nWho?", 16, 0),  # says too little
        ("{text}", 16, 0),  # no question to be told
        # as much of it as is in the window
        (
            "{text}\n\nOf all those who came to the island, who keeps the light at night?",
            16 - N_AFTER,
            N_AFTER,
        ),
    ],
)
def test_whose_question_votes(
    make: Callable[..., Llama], text: str, content: str, n_voters: int, n_after: int
) -> None:
    llm = make(replace(CONFIG, protect_system=False))
    ask(llm, user(content.format(text=text.replace("\n\n", "\n"))))
    assert (llm.last_prefill.n_voters, llm.last_prefill.n_after_voters) == (n_voters, n_after)
    # an answer is no question: the last turn is not the user's
    ask(llm, user(f"{text}\n\nWho keeps it?"), {"role": "assistant", "content": "A man."})
    assert (llm.last_prefill.n_voters, llm.last_prefill.n_after_voters) == (16, 0)


def test_a_later_question_votes(make: Callable[..., Llama], text: str) -> None:
    """Of the vault, and of a prefill anew, the same rows, but for what rounding swaps."""
    turns = [user(f"{text}\n\nWho keeps the light?")]
    kept, first = [], []
    for vault in ("ram", "off"):
        llm = make(replace(CONFIG, protect_system=False, vault=vault))
        ask(llm, *turns)
        first.append(heads(llm))
        more = [{"role": "assistant", "content": "A man"}, user("And where does the man live?")]
        llm.reset() if vault == "off" else None
        ask(llm, *turns, *more)
        assert llm.last_prefill.n_after_voters == N_AFTER
        kept.append(heads(llm))
    assert jaccard(*kept) > 0.95
    assert jaccard(first[0], kept[0]) < 0.9


def test_policies_in_python_that_prefer_the_question(make: Callable[..., Llama], text: str) -> None:
    llm = make(
        replace(
            CONFIG, policy="sentence:of=snapkv-paper:observation=question", protect_system=False
        )
    )
    ask(llm, user(f"{text}\n\nWho keeps the light?"))
    span = llm._marks.of(llm, llm.snapkv, llm._input_ids[: llm.n_prompt]).question
    assert span is not None and spell(llm, span) == "Who keeps the light?"
    ask(llm, user(text))  # refused by those that need one
    assert llm.last_prefill is not None and llm.last_prefill.n_kept == BUDGET


def test_chats_whose_question_is_not_looked_for(
    make: Callable[..., Llama], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler of one's own may evaluate what it is given, and a template may refuse a probe."""
    from llama_cpp import llama_chat_format

    llm = make(replace(CONFIG, protect_system=False))
    question = user(f"{text}\n\nWho keeps the light?")
    handled = []
    inner = llama_chat_format.get_chat_completion_handler("chatml")

    def handler(**arguments: Any) -> Any:
        handled.append(arguments["messages"])
        return inner(**arguments)

    llm.chat_handler = handler
    ask(llm, question)
    assert handled == [[question]]
    assert (llm.last_prefill.n_voters, llm.last_prefill.n_after_voters) == (16, 0)

    def refuse(*_: Any) -> Any:
        raise ValueError("System role not supported")

    llm.chat_handler = None
    monkeypatch.setattr("snapkv_local.prompt.locate.frame", refuse)
    llm.reset()
    ask(llm, question)
    assert (llm.last_prefill.n_voters, llm.last_prefill.n_after_voters) == (16, 0)
    monkeypatch.undo()
    llm.reset()
    ask(llm, question)
    assert llm.last_prefill.n_after_voters > 0
