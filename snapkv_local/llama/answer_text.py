"""The text of an answer, whose tokens may hold parts of characters, and the logprobs of its tokens."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


class AnswerText:
    """Becomes text as soon as no later token can change it.

    Bytes that are not UTF-8 are left out, as is a character that the answer's end cuts.

    Args:
        stops: texts before which the answer ends.

    Attributes:
        stopped_by: the one of stops that was found, which ended the answer.
        n_settled: bytes that have become text, or wait for the rest of their character.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self.stopped_by: str | None = None
        self.n_settled = 0
        self._stops = {stop.encode("utf-8", "ignore"): stop for stop in stops if stop}
        self._bytes = b""
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")

    def add(self, piece: bytes) -> str:
        """A token's bytes; the text that is settled now."""
        self._bytes += piece
        places = [(self._bytes.find(stop, self.n_settled), stop) for stop in self._stops]
        found = [(at, stop) for at, stop in places if at >= 0]
        if not found:
            return self._settle(len(self._bytes) - self._n_held())
        at, stop = min(found)
        self.stopped_by = self._stops[stop]
        return self._settle(at)

    def end(self) -> str:
        """What was held back for a stop that did not come."""
        return "" if self.stopped_by is not None else self._settle(len(self._bytes))

    def _settle(self, end: int) -> str:
        settled = self._decoder.decode(self._bytes[self.n_settled : end])
        self.n_settled = end
        return settled

    def _n_held(self) -> int:
        """Last bytes that may be the beginning of a stop."""
        n_new = len(self._bytes) - self.n_settled
        lengths = (
            n
            for stop in self._stops
            for n in range(min(len(stop) - 1, n_new), 0, -1)
            if self._bytes.endswith(stop[:n])
        )
        return max(lengths, default=0)


class TokenText(str):
    """A token's text in logprobs; that of a part of a character is written as bytes:\\xf0\\x9f.

    Attributes:
        id: the token.
        data: its bytes; clients join them to text.
        logprob: natural logarithm of its probability.
        top: the most likely tokens in its place, the likeliest first.
    """

    id: int
    data: bytes
    logprob: float
    top: list[TokenText]

    @classmethod
    def of(cls, id_: int, piece: bytes, logprob: float, top: list[TokenText]) -> TokenText:
        """From a token and its bytes."""
        try:
            text = cls(piece.decode("utf-8"))
        except UnicodeDecodeError:
            text = cls("bytes:" + "".join(f"\\x{byte:02x}" for byte in piece))
        text.id, text.data, text.logprob, text.top = id_, piece, logprob, top
        return text

    def entry(self) -> dict[str, Any]:
        """In the form of OpenAI's chats."""
        return {"token": str(self), "bytes": list(self.data), "logprob": self.logprob}


def likeliest(logprobs: npt.NDArray[np.float32], n: int) -> list[int]:
    """The n most likely tokens of [n_vocab], the likeliest first."""
    if n == 0:
        return []
    found = np.argpartition(logprobs, -n)[-n:]
    return [int(token) for token in found[np.argsort(-logprobs[found], kind="stable")]]


class Logprobs:
    """Of an answer's tokens, in the form of OpenAI's text completions.

    Args:
        n_before: characters before the answer, from which text_offset counts.
    """

    def __init__(self, n_before: int) -> None:
        self._n_characters = n_before
        self._n_bytes = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        # with the first byte, the end, and the first character
        self._waiting: list[tuple[TokenText, int, int, int]] = []

    def add(self, token: TokenText) -> None:
        """The next token of the answer."""
        start, offset = self._n_bytes, self._n_characters
        self._n_bytes += len(token.data)
        self._n_characters += len(self._decoder.decode(token.data))
        self._waiting.append((token, start, self._n_bytes, offset))

    def take(self, n_settled: int, is_last: bool) -> dict[str, Any] | None:
        """Those of which all bytes are settled; at the end those that have begun before it."""
        n = sum(
            start < n_settled or end == n_settled if is_last else end <= n_settled
            for _, start, end, _ in self._waiting
        )
        found, self._waiting = self._waiting[:n], self._waiting[n:]
        if not found:
            return None
        tops = [
            {**{str(top): top.logprob for top in reversed(token.top)}, token: token.logprob}
            for token, *_ in found
        ]
        return {
            "tokens": [token for token, *_ in found],
            "text_offset": [offset for *_, offset in found],
            "token_logprobs": [token.logprob for token, *_ in found],
            "top_logprobs": tops,
        }

    @staticmethod
    def merged(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """One for all tokens of some."""
        names = ("tokens", "text_offset", "token_logprobs", "top_logprobs")
        return {name: [value for part in parts for value in part[name]] for name in names}


def with_bytes(response: Any) -> Any:
    """A chat's response, or a chunk of it, in which llama_cpp has left out the tokens' bytes."""
    for choice in response["choices"]:
        for entry in (choice.get("logprobs") or {}).get("content") or ():
            token = entry["token"]
            if isinstance(token, TokenText):
                entry.update(token.entry(), top_logprobs=[top.entry() for top in token.top])
    return response
