"""What comes next in a text, or in a Python file: no question, no chat template.

It hardly separates a policy from keeping the last rows, and is a bound for how much the model changes.
"""

from __future__ import annotations

import random
import re
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from snapkv_local.errors import PromptError
from snapkv_local.eval.case import Case
from snapkv_local.eval.prose import generated, manual
from snapkv_local.eval.tasks.task import Order, Wanted, document_id, orders
from snapkv_local.eval.tokens import Tokens
from snapkv_local.eval.words import Split, own
from snapkv_local.prompt.spelling import find, starts

# of files that are long enough to complete
MIN_CHARACTERS = 8_000

# gives the text before the place where it is to be continued, and what follows there
Cut = Callable[[Order], tuple[str, str]]


@dataclass(frozen=True)
class Continuation:
    """A task that continues a text.

    Attributes:
        name: as on the command line.
        cut: makes a text.
        n_gold: tokens that are scored.
    """

    name: str
    cut: Cut
    n_gold: int

    def settings(self) -> dict[str, Any]:
        """Nothing: the code decides."""
        return {}

    def cases(self, tokens: Tokens, wanted: Wanted) -> Iterator[Case]:
        """One case a document: the last tokens before the cut are the prompt."""
        for order in orders(self.name, wanted):
            document = document_id(self.name, order)
            yield self._case(tokens, order, document)

    def _case(self, tokens: Tokens, order: Order, document: str) -> Case:
        before, following = self.cut(order)
        # together, as a model reads them; what lies far before the prompt is not needed
        before = before[-12 * order.length :]
        ids = tokens.text(before + following[: 20 * self.n_gold], begins=False)
        pieces = tokens.spell(ids)
        at = find(b"".join(pieces), before) + len(before.encode())
        n_before = int(np.searchsorted(starts(pieces), at))
        first = tokens.text("", begins=True)  # what the model begins every text with
        n_text = order.length + 1 - len(first)
        begin, end = n_before - n_text, n_before + self.n_gold
        if begin < 0 or end > len(ids) or n_text < 2:
            raise PromptError(
                f"length {order.length} of task {self.name}",
                f"is not what a text of {n_before} tokens can give",
                "give other --lengths",
            )
        text, gold = ids[begin:n_before], ids[n_before:end]
        pieces = pieces[begin:n_before]
        ends = [m.end() for m in re.finditer(rb"(?<=[.!?])(?=\s)|\n", b"".join(pieces))]
        sentences = {0, *(len(first) + np.searchsorted(starts(pieces), ends)).tolist()}
        return Case(
            id=f"{document}/0",
            task=self.name,
            document=document,
            length=order.length,
            prompt=(*first, *text[:-1]),
            # the last token is fed to the compressed cache, so that no logits are of full attention
            after=(text[-1],),
            gold=tuple(gold),
            system=(0, len(first)),
            sentences=tuple(sorted(s for s in sentences if s < order.length)),
        )


def _prose(order: Order) -> tuple[str, str]:
    """Python's manual, cut between two words; in front of it generated prose where it is too short."""
    rng, split = order.rng, order.split
    words = "".join(manual(rng, split)).rstrip().split(" ")
    at = rng.randrange(len(words) // 2, len(words) - 150)
    before = " ".join(words[:at])
    if at < order.length:
        before = "".join(generated(rng, split, order.length - at)) + before
    return before, " " + " ".join(words[at:])


def _code(order: Order) -> tuple[str, str]:
    """Files of the standard library one after the other, cut at a line of the last one."""
    files = _files(order.split)
    order.rng.shuffle(files)
    last = files.pop().read_text(encoding="utf-8")
    before = ""
    while files and len(before) < 6 * order.length:
        before = files.pop().read_text(encoding="utf-8") + "\n\n" + before
    at = _line(last, order.rng)
    return before + last[:at], last[at:]


def _line(text: str, rng: random.Random) -> int:
    """Where a line of code begins in the second half of a file, with enough behind it."""
    begins = [
        match.start()
        for match in re.finditer(r"^ +[a-z_][^#\n]{12,}$", text, re.M)
        if len(text) // 2 < match.start() < len(text) - 400
    ]
    return rng.choice(begins)


def _files(split: Split) -> list[Path]:
    return own(_library(), split)


@cache
def _library() -> tuple[Path, ...]:
    """Modules of the standard library that are long enough, by name."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in sorted(folder.glob("[a-z]*.py")):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        lines = re.findall(r"^ +[a-z_][^#\n]{12,}$", text[len(text) // 2 : -400], re.M)
        if len(text) >= MIN_CHARACTERS and len(lines) > 10:
            found.append(path)
    return tuple(found)


TASKS = (Continuation("continue", _prose, 48), Continuation("code", _code, 24))
