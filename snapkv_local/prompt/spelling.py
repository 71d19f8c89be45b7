"""Tokens and the text that they spell: which token holds which byte."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from snapkv_local.errors import PromptError

Span = tuple[int, int]

# where a sentence begins: after the end of one, or on a new line
_SENTENCE = re.compile(rb"(?<=[.!?])(?=\s)|(?<=\n)(?=[^\n])")


@dataclass(frozen=True)
class Spelling:
    """A prompt's tokens in UTF-8.

    Attributes:
        data: what all of them spell.
        begins: int64 [n + 1], the byte at which each token begins; the last is the end of all.
    """

    data: bytes
    begins: npt.NDArray[np.int64]

    @classmethod
    def of(cls, pieces: Sequence[bytes]) -> Spelling:
        """From what each token spells."""
        return cls(b"".join(pieces), starts(pieces))

    def first(self, byte: int) -> int:
        """The token that holds a byte."""
        return int(np.searchsorted(self.begins, byte, side="right")) - 1

    def span(self, begin: int, end: int) -> Span:
        """[begin, end) of the tokens that hold bytes [begin, end), at least one."""
        return self.first(begin), self.first(end - 1) + 1

    def before(self, byte: int) -> Span:
        """[0, end) of the tokens before the one that holds a byte."""
        return 0, self.first(byte)

    def sentences(self, begin: int, end: int) -> set[int]:
        """First tokens of the sentences that begin within bytes [begin, end)."""
        found = [m.start() for m in _SENTENCE.finditer(self.data, begin, end)]
        return set(np.searchsorted(self.begins, found).tolist())

    def find(self, text: str) -> int:
        """The byte at which a text stands last: a template's own words come before.

        Raises:
            PromptError: the tokens do not spell it.
        """
        return find(self.data, text)


def starts(pieces: Sequence[bytes]) -> npt.NDArray[np.int64]:
    """int64 [n + 1]: the byte at which each token begins; the last is the end of all."""
    begins = np.zeros(len(pieces) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, pieces), np.int64, len(pieces)), out=begins[1:])
    return begins


def find(data: bytes, text: str) -> int:
    """Where what tokens spell has a text, in bytes; the last such place.

    Raises:
        PromptError: it has not.
    """
    at = data.rfind(text.encode())
    if at < 0:
        raise PromptError(
            f"the text {text[:40]!r}...",
            "is not spelt by its tokens: the chat template or the tokenizer changes it",
            "take another text or model",
        )
    return at
