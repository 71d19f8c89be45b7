"""What a document is made of: statements, and the questions about them with their answers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from pieces import Ids, Word

TASKS = (
    "fact", "backward", "hops", "values", "questions", "count", "keys", "table", "variable", "variables",
    "frequent", "passage",
)  # fmt: skip


@dataclass(slots=True)
class Exchange:
    """A question and its answer.

    Attributes:
        task: one of TASKS.
        asked: tokens, at the begin of a line, and after a space.
        full: parts of the answer, in a sentence: tokens, and are they what was asked for?
        short: what was asked for alone, at the begin of a line; empty where there is no such answer.
    """

    task: str
    asked: Ids
    asked_spaced: Ids
    full: list[tuple[Ids, bool]]
    short: Ids


@dataclass(slots=True)
class Item:
    """Statements, and what may be asked about them.

    Attributes:
        said: each after a space, and at the begin of a line.
        exchange: None for what only distracts.
        in_order: do the statements keep their order in the document?
        is_block: are they lines, such as those of a table, that stand together?
    """

    said: list[tuple[Ids, Ids]]
    exchange: Exchange | None = None
    in_order: bool = False
    is_block: bool = False


@dataclass(slots=True)
class Used:
    """What a sequence has said already, so that each question has one answer.

    Attributes:
        known: relation and subject.
        values: relation and value, of all facts, and of how many.
        reserved: relation and value that no further fact may have.
        words: keys, variables and names that may not come again.
    """

    known: set[tuple[bytes, bytes]] = field(default_factory=set)
    values: Counter[tuple[bytes, bytes]] = field(default_factory=Counter)
    reserved: set[tuple[bytes, bytes]] = field(default_factory=set)
    words: set[bytes] = field(default_factory=set)

    def is_new(self, word: Word) -> bool:
        """Is this the first time? It is noted."""
        name = word.spaced.tobytes()
        if name in self.words:
            return False
        self.words.add(name)
        return True
