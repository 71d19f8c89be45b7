"""A document with questions, as text that is still to be fitted to a length."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

Layout = Literal["question last", "question first", "question after"]


@dataclass(frozen=True)
class Planted:
    """What must be in the document, whatever its length.

    Attributes:
        text: with the space or end of line that follows it.
        depth: where it stands, as a share of the document, in [0, 1].
    """

    text: str
    depth: float


@dataclass(frozen=True)
class Question:
    """One question and its answer.

    Attributes:
        words: of the question.
        opening: how the answer begins; fed to the compressed cache and not scored.
        answer: scored, with the space that follows the opening.
        depth: of the planted text that answers it; None if there is no single one.
    """

    words: str
    opening: str
    answer: str
    depth: float | None = None


@dataclass(frozen=True)
class Draft:
    """A document of any length.

    Attributes:
        filler: sentences or lines, each with what separates it from the next. As many words as the
            length allows are taken from the front.
        planted: put between them.
        questions: about the document.
        layout: where the question stands: after the document, before it, or after the document
            where the prompt that is compressed ends with the document.
        before: text in front of the filler.
    """

    filler: tuple[str, ...]
    planted: tuple[Planted, ...]
    questions: tuple[Question, ...]
    layout: Layout = "question last"
    before: str = ""
    _ends: list[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        n_words = (len(unit.split(" ")) - unit.endswith(" ") for unit in self.filler)
        object.__setattr__(self, "_ends", list(accumulate(n_words)))

    @property
    def n_words(self) -> int:
        """Words of the filler, by spaces."""
        return self._ends[-1] if self._ends else 0

    def text(self, n_words: int) -> str:
        """The document with so many words of the filler, the last sentence cut if need be."""
        n_units = bisect_right(self._ends, n_words)
        units = list(self.filler[:n_units])
        n_left = n_words - (self._ends[n_units - 1] if n_units else 0)
        # from the end, so that earlier places stay where they are
        for planted in sorted(self.planted, key=lambda p: p.depth, reverse=True):
            units.insert(round(planted.depth * n_units), planted.text)
        if n_left > 0:
            units.append(" ".join(self.filler[n_units].split(" ")[:n_left]))
        return (self.before + "".join(units)).rstrip()
