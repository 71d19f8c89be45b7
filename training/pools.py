"""Words in tokens, by kind: subjects and values of facts."""

from __future__ import annotations

import random
import re
from pathlib import Path

import words
from pieces import Spelling, Word


class Pools:
    """Draws words. Another generator draws others.

    Args:
        folder: what corpus.py has written.
    """

    def __init__(self, spelling: Spelling, folder: Path, rng: random.Random) -> None:
        self.rng = rng
        pieces = spelling.tokenizer.get_vocab()
        self._initial = sorted(p[1:] for p in pieces if re.fullmatch("Ġ[A-Za-z][a-z]*", p))
        self._inner = sorted(p for p in pieces if re.fullmatch("[a-z]{1,5}", p))
        given = (folder / "names.txt").read_text().split()
        places = (folder / "places.txt").read_text().split()
        common = [w for w in (folder / "words.txt").read_text().split() if w not in words.COLOURS]
        made_up = self._made_up_like(given + places, [words.made_up(rng) for _ in range(5000)])
        first = [*words.FIRST_NAMES, *words.FIRST_NAMES, *given]
        last = [*made_up, *places, *given]
        self._first = spelling.words(first)
        self._made_up = spelling.words(made_up)
        named = first + made_up
        self._full = spelling.words(
            [f"{rng.choice(named)} {rng.choice(last)}" for _ in range(4500)]
        )
        things = [f"the {t}" for t in words.THINGS]
        things += [f"the {t} of {rng.choice(last)}" for t in words.THINGS for _ in range(20)]
        things += [f"the {t} in {rng.choice(words.CITIES)}" for t in words.THINGS for _ in range(4)]
        self._things = spelling.words(things, may_begin=False)
        self.plain = spelling.words(common)
        self._unheard = spelling.words(self._made_up_like(common, []))
        self.keys = spelling.words([words.key(rng) for _ in range(12_000)])
        self.variables = spelling.words([words.variable(rng) for _ in range(8000)])
        self._cities = spelling.words([*words.CITIES, *words.CITIES, *places])
        self._by_kind = {
            "colour": spelling.words(list(words.COLOURS)) * 4
            + self.plain[:200]
            + self._unheard[:300],
            "number": spelling.words([words.number(rng) for _ in range(16_000)]),
            "small": spelling.words([str(n) for n in range(1, 100)]),
            "room": spelling.words([str(n) for n in range(100, 1000)]),
            "code": spelling.words([words.code(rng) for _ in range(8000)]),
            "date": spelling.words([f"{d} {m}" for d in range(1, 29) for m in words.MONTHS]),
            "word": self.plain + self._unheard[:4000],
            "phrase": spelling.words([self._phrase() for _ in range(6000)]),
        }

    def _made_up_like(self, some: list[str], more: list[str]) -> list[str]:
        """Words that are none, with every token of the vocabulary that begins a word as their first."""
        rng = self.rng
        is_capital = some[0][0].isupper()
        found = [words.mutated(rng.choice(some), rng) for _ in range(6000)] + more
        for _ in range(7000):
            word = rng.choice(self._initial)
            word = (word.capitalize() if is_capital else word.lower()) + "".join(
                rng.choice(self._inner) for _ in range(rng.choice((0, 1, 1, 2)))
            )
            found.append(word)
        found = list(dict.fromkeys(found))
        rng.shuffle(found)
        return found

    def _phrase(self) -> str:
        rng = self.rng
        phrase = f"{rng.choice(words.DO)} {rng.choice(words.DO_WHAT)}"
        if rng.random() < 0.5:
            phrase += f" and {rng.choice(words.DO)} {rng.choice(words.DO_WHAT)}"
        if rng.random() < 0.7:
            phrase += f" {rng.choice(words.DO_WHERE)}"
        return phrase

    def person(self) -> Word:
        """A name."""
        r = self.rng.random()
        return self.rng.choice(self._first if r < 0.3 else self._made_up if r < 0.7 else self._full)

    def subject(self, is_person: bool) -> Word:
        """A person or, where none is asked for, a thing every third time."""
        if not is_person and self.rng.random() < 0.35:
            return self.rng.choice(self._things)
        return self.person()

    def value(self, kind: str) -> Word:
        """A value of a kind that frames.py names."""
        if kind == "name":
            return self.person()
        if kind == "city":
            r = self.rng.random()
            return self.rng.choice(
                self._cities if r < 0.45 else self._made_up if r < 0.9 else self._first
            )
        return self.rng.choice(self._by_kind[kind])
