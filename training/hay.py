"""Text between statements."""

from __future__ import annotations

import random
from array import array
from bisect import bisect_left
from pathlib import Path

import numpy as np

import words
from pieces import Ids, Spelling


class Hay:
    """Sentences of the corpus, or made of phrases."""

    def __init__(self, spelling: Spelling, folder: Path, rng: random.Random) -> None:
        self.rng = rng
        data = np.load(folder / "corpus.npy")
        self._corpus = array("H", data.tobytes())
        vocabulary = spelling.tokenizer.get_vocab()
        n = max(vocabulary.values()) + 1
        begins, ends = np.zeros(n, bool), np.zeros(n, bool)
        for piece, i in vocabulary.items():
            begins[i] = piece.startswith("Ġ") and piece[1:2].isupper()
            ends[i] = piece[-1:] in (".", "?", "!")
        self._line = spelling.encode("\n")[0]
        is_line = data == self._line
        starts = (begins[data[1:]] & ends[data[:-1]]) | (is_line[1:] & ~is_line[:-1])
        self._cuts = (np.flatnonzero(starts) + 1).tolist()
        self._paragraphs = (np.flatnonzero(is_line[:-1] & ~is_line[1:]) + 1).tolist()
        self._last = self._cuts[-1] - 1000
        self._pools = [
            spelling.words(list(w)) for w in (words.WHO, words.DID, words.WHAT, words.WHEN)
        ]
        self._who_lower = spelling.words([w[0].lower() + w[1:] for w in words.WHO])
        self._when_upper = spelling.words([w[0].upper() + w[1:] for w in words.WHEN])
        self._dot, self._comma = spelling.encode("."), spelling.encode(",")
        self.begin()

    def begin(self) -> None:
        """Another document."""
        self._at = -1
        self._is_made = self.rng.random() < 0.3

    def write(self, out: Ids, n: int) -> None:
        """About n tokens of whole sentences."""
        if n <= 0:
            return
        if self._is_made:
            self._make(out, n)
            return
        rng = self.rng
        at_line = not out or out[-1] == self._line
        while self._at < 0 or self._at + n > self._last or at_line or rng.random() < 0.03:
            self._at = rng.choice(self._paragraphs if at_line else self._cuts)
            at_line = False
            if n > self._last:
                raise ValueError(f"the corpus has less than {n} tokens")
        end = self._cuts[bisect_left(self._cuts, self._at + n)]
        out.extend(self._corpus[self._at : end])
        self._at = end

    def _make(self, out: Ids, n: int) -> None:
        rng = self.rng
        end = len(out) + n
        while len(out) < end:
            at_line = not out or out[-1] == self._line
            if rng.random() < 0.5:
                chosen = [rng.choice(pool) for pool in self._pools]
                out.extend(chosen[0].first if at_line else chosen[0].spaced)
                for word in chosen[1:]:
                    out.extend(word.spaced)
            else:
                when = rng.choice(self._when_upper)
                out.extend(when.first if at_line else when.spaced)
                out.extend(self._comma)
                for pool in (self._who_lower, *self._pools[1:3]):
                    out.extend(rng.choice(pool).spaced)
            out.extend(self._dot)
            if rng.random() < 0.15 and len(out) < end:
                out.extend((self._line, self._line))

    def passage(self) -> tuple[Ids, Ids, Ids] | None:
        """Sentences of the corpus; the begin of one of them, and how it goes on."""
        i = self.rng.randrange(len(self._cuts) - 10)
        before = self.rng.randint(0, 2)
        begin, at, end = self._cuts[i], self._cuts[i + before], self._cuts[i + before + 1]
        last = self._cuts[i + before + self.rng.randint(1, 3)]
        n = self.rng.randint(6, 10)
        if not n + 4 <= end - at <= 50 or last - begin > 250 or self._corpus[at] == self._line:
            return None
        return self._corpus[begin:last], self._corpus[at : at + n], self._corpus[at + n : end]
