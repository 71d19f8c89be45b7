"""Texts in tokens, put together from pieces that are tokenized once.

A piece begins and ends where words do, so that the tokens of the whole are those that its text would get;
check.py compares.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

Ids = array  # of type "H"


class Word(NamedTuple):
    """A name, a value, or several words.

    Attributes:
        spaced: tokens after a space.
        first: at the begin of a line.
        may_begin: may it begin a sentence?
    """

    spaced: Ids
    first: Ids
    may_begin: bool = True


class Spelling:
    """Tokenizes, and remembers."""

    def __init__(self, file: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(file))
        self._known: dict[str, Ids] = {}

    def encode(self, text: str) -> Ids:
        """Tokens of a text that occurs often."""
        if text not in self._known:
            self._known[text] = array(
                "H", self.tokenizer.encode(text, add_special_tokens=False).ids
            )
        return self._known[text]

    def word(self, text: str, may_begin: bool = True) -> Word:
        """A word that occurs often."""
        return Word(self.encode(f" {text}"), self.encode(text), may_begin)

    def words(self, texts: list[str], may_begin: bool = True) -> list[Word]:
        """Many words at once."""
        spaced = self.tokenizer.encode_batch([f" {t}" for t in texts], add_special_tokens=False)
        first = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        return [
            Word(array("H", a.ids), array("H", b.ids), may_begin)
            for a, b in zip(spaced, first, strict=True)
        ]


class Template:
    """A sentence with slots such as {s}."""

    def __init__(self, spelling: Spelling, text: str) -> None:
        parts = [p for p in re.split(r"(\{[a-z]\})", text) if p]
        self.begins_with = parts[0][1] if parts[0][0] == "{" else ""
        self.slots = [p[1] for p in parts if p[0] == "{"]
        # a slot's name or "", tokens after a space, tokens at the begin of a line
        self._pieces: list[tuple[str, Ids, Ids]] = []
        for i, part in enumerate(parts):
            if part[0] == "{":
                self._pieces.append((part[1], array("H"), array("H")))
                continue
            if i + 1 < len(parts):
                # the space belongs to what fills the slot
                if part[-1] != " ":
                    raise ValueError(f"no space before a slot: {text}")
                part = part[:-1]
            if part:
                spaced = spelling.encode(f" {part}" if i == 0 else part)
                self._pieces.append(("", spaced, spelling.encode(part)))

    def write(self, slots: Mapping[str, Word], spaced: bool, until: str = "") -> Ids:
        """Its tokens.

        Args:
            spaced: does it follow a space?
            until: the slot before which it ends.
        """
        out = array("H")
        for slot, after_space, first in self._pieces:
            if slot:
                if slot == until:
                    break
                word = slots[slot]
                out.extend(word.spaced if spaced else word.first)
            else:
                out.extend(after_space if spaced else first)
            spaced = True
        return out

    def is_before(self, a: str, b: str) -> bool:
        """Does one slot come before another?"""
        return self.slots.index(a) < self.slots.index(b)
