"""Tokens of texts, and what tokens spell: as llama_cpp has it, in memory that fits."""

import tracemalloc
from collections.abc import Callable, Iterator

import pytest

from snapkv_local import Llama
from snapkv_local.models.resolve import demo_model, needle_model
from snapkv_local.prompt import vocabulary

TEXTS = (
    "",
    " ",
    "The pump stands in room 417.",
    "\n\n  Grüße 日本語 \u200d🙂\x00",
    "<|im_end|>x",
    "x" * 3000,
)


@pytest.fixture(scope="module", params=[needle_model, demo_model], ids=["needle", "demo"])
def llm(request: pytest.FixtureRequest) -> Iterator[Llama]:
    path: Callable[[], object] = request.param
    llm = Llama(str(path()), vocab_only=True, verbose=False)
    yield llm
    llm.close()


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_llama_cpps(llm: Llama, text: str, special: bool) -> None:
    data = text.encode()
    expected = llm._model.tokenize(data, True, special)
    assert vocabulary.tokens(llm, data, True, special) == expected
    assert llm.tokenize(data, special=special) == expected


def test_a_text_of_more_tokens_than_there_is_room_for(
    llm: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"The pump stands in room 417."
    monkeypatch.setattr(vocabulary, "_AROUND", 1 - len(data))
    assert vocabulary.tokens(llm, data, False, False) == llm._model.tokenize(data, False, False)


def test_a_short_text_takes_little_memory(llm: Llama) -> None:
    """4 bytes for each position that the model was trained for, as llama_cpp takes, are 2 MiB."""
    tracemalloc.start()
    try:
        llm.tokenize(b"Where is the pump?")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * 1024


def test_pieces_spell_the_text(llm: Llama) -> None:
    data = "".join(TEXTS).encode()
    tokens = llm.tokenize(data, add_bos=False, special=True)
    pieces = vocabulary.pieces(llm, tokens)
    assert b"".join(pieces) == data
    assert pieces == [vocabulary.pieces(llm, [token])[0] for token in tokens]
