"""From bytes of tokens to text: no character is lost, none is said twice, and stops are never seen."""

import itertools

import numpy as np
import pytest

from snapkv_local.llama.answer_text import AnswerText, Logprobs, TokenText, likeliest, with_bytes

TEXT = "né 🎉🎉 漢字 end"


def said(pieces: list[bytes], stops: list[str]) -> list[str]:
    """What is said after each token, and at the end."""
    text, found = AnswerText(stops), []
    for piece in pieces:
        found.append(text.add(piece))
        if text.stopped_by is not None:
            return found
    return [*found, text.end()]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("stops", [[], ["漢x", "🎉🎉🎉"]])
def test_text_is_whole_however_tokens_cut_it(size: int, stops: list[str]) -> None:
    data = TEXT.encode()
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    assert "".join(said(pieces, stops)) == TEXT


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("stop", ["n", "🎉", "🎉 ", "漢字", "d", " end"])
def test_nothing_of_a_stop_is_said(size: int, stop: str) -> None:
    data = TEXT.encode()
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    assert "".join(said(pieces, ["never", stop])) == TEXT[: TEXT.index(stop)]


def test_the_first_of_stops_ends_it_whatever_their_order() -> None:
    for stops in itertools.permutations(["day", "od d", "Good dax"]):
        assert "".join(said([b"Good day"], list(stops))) == "Go"


def test_text_is_held_only_while_it_may_be_a_stop() -> None:
    assert said([b"a", b"<", b"e", b"x", b"<e"], ["<end>"]) == ["a", "", "", "<ex", "", "<e"]


def test_a_character_that_the_end_cuts_and_bytes_that_are_none_are_left_out() -> None:
    assert said([b"a\xff", b"b\xf0\x9f"], []) == ["a", "b", ""]


def tokens_of(pieces: list[bytes]) -> list[TokenText]:
    return [TokenText.of(i, piece, -0.5, []) for i, piece in enumerate(pieces)]


def test_each_token_has_its_bytes_and_where_its_text_begins() -> None:
    pieces = [b"a", b"\xf0\x9f", b"\x8e\x89", b"b"]
    logprobs = Logprobs(10)
    for token in tokens_of(pieces):
        logprobs.add(token)
    found = logprobs.take(6, is_last=True)
    assert found is not None
    assert found["tokens"] == ["a", "bytes:\\xf0\\x9f", "bytes:\\x8e\\x89", "b"]
    assert found["text_offset"] == [10, 11, 11, 12]
    assert b"".join(token.data for token in found["tokens"]) == b"".join(pieces)


def test_tokens_wait_until_their_text_is_settled() -> None:
    logprobs = Logprobs(0)
    for token in tokens_of([b"ab", b"cd", b"ef"]):
        logprobs.add(token)
    first = logprobs.take(3, is_last=False)
    assert first is not None
    assert first["tokens"] == ["ab"]
    assert logprobs.take(3, is_last=False) is None
    last = logprobs.take(3, is_last=True)  # a stop begins within the second
    assert last is not None
    assert last["tokens"] == ["cd"]


def test_the_likeliest_first() -> None:
    logprobs = np.float32([-3, -1, -2, -0.5])
    assert likeliest(logprobs, 3) == [3, 1, 2]
    assert likeliest(logprobs, 0) == []


def test_chats_get_the_bytes_that_llama_cpp_leaves_out() -> None:
    top = TokenText.of(1, b"\xf0\x9f", -0.1, [])
    entry = {"token": TokenText.of(2, b"x", -2.0, [top]), "bytes": None, "top_logprobs": []}
    chunk = with_bytes({"choices": [{"logprobs": {"content": [entry]}}, {"logprobs": None}]})
    assert chunk["choices"][0]["logprobs"]["content"] == [
        {
            "token": "x",
            "bytes": [120],
            "logprob": -2.0,
            "top_logprobs": [
                {"token": "bytes:\\xf0\\x9f", "bytes": [240, 159], "logprob": -0.1},
            ],
        }
    ]
