"""What a task is."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from snapkv_local.eval.case import Case
from snapkv_local.eval.draft import Draft
from snapkv_local.eval.render import fit
from snapkv_local.eval.tokens import Tokens
from snapkv_local.eval.words import Split


@dataclass(frozen=True)
class Wanted:
    """Which cases are asked for.

    Attributes:
        lengths: of prompts, in tokens.
        n_documents: of each task and length; None for all of a file, and 8 of a task that makes
            its own.
        n_questions: about each document, where the task has several.
        n_depths: where answers stand: in the middle of so many parts of equal size; None for
            depths that are all different.
        seed: another one gives other texts.
        split: whose words and texts are used.
    """

    lengths: tuple[int, ...] = (2048,)
    n_documents: int | None = None
    n_questions: int = 3
    n_depths: int | None = None
    seed: int = 0
    split: Split = "test"

    @property
    def n_made(self) -> int:
        """Documents of a task that makes its own."""
        return 8 if self.n_documents is None else self.n_documents


@dataclass(frozen=True)
class Order:
    """One document to make.

    Attributes:
        index: of the document.
        length: of the prompt, in tokens; a text of so many words is always long enough.
        wanted: of the task.
        rng: of the document, the same for all lengths.
    """

    index: int
    length: int
    wanted: Wanted
    rng: random.Random

    @property
    def split(self) -> Split:
        """Whose words and texts are used."""
        return self.wanted.split

    def depth(self, question: int) -> float:
        """Where the answer to a question stands: over all of a task's questions, evenly everywhere."""
        number = self.index * self.wanted.n_questions + question
        n = self.wanted.n_depths
        if n is not None:
            # each round begins one deeper: texts of every second document are of another kind
            return round(((number + number // n) % n + 0.5) / n, 4)
        # multiples of the golden ratio, whose fractions fill [0, 1) evenly
        return round((0.5 + number * 0.6180339887498949) % 1, 4)


class Task(Protocol):
    """Makes cases."""

    @property
    def name(self) -> str:
        """As on the command line."""

    def settings(self) -> dict[str, Any]:
        """What beside the name decides which cases it makes."""

    def cases(self, tokens: Tokens, wanted: Wanted) -> Iterator[Case]:
        """All cases, those of a document together.

        Raises:
            PromptError, ConfigError: a length that the task cannot serve, or a bad file.
        """


@dataclass(frozen=True)
class Drafted:
    """A task whose documents are drafts.

    Attributes:
        name: as on the command line.
        draft: makes a document.
    """

    name: str
    draft: Callable[[Order], Draft]

    def settings(self) -> dict[str, Any]:
        """Nothing: the code decides."""
        return {}

    def cases(self, tokens: Tokens, wanted: Wanted) -> Iterator[Case]:
        """All cases, those of a document together."""
        for order in orders(self.name, wanted):
            document = document_id(self.name, order)
            yield from fit(tokens, self.draft(order), order.length, self.name, document)


def orders(name: str, wanted: Wanted) -> Iterator[Order]:
    """The documents of a task that makes its own."""
    for length in wanted.lengths:
        for index in range(wanted.n_made):
            rng = random.Random(f"{name} {wanted.split} {wanted.seed} {index}")
            yield Order(index, length, wanted, rng)


def document_id(name: str, order: Order) -> str:
    """Of a document that was made."""
    return f"{name}/{order.length}/{order.index}"
