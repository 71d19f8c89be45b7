"""Training sequences: chats about long documents with statements in them, in tokens."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import frames
from exchanges import TASKS, Exchange, Item, Used
from facts import Facts
from hay import Hay
from pieces import Ids, Spelling
from pools import Pools
from structures import Structures

# share of a sequence's tokens that are questions and answers, by its length
SHARES = ((512, 0.6), (2048, 0.5), (8192, 0.35), (32768, 0.25), (131072, 0.18), (1 << 30, 0.12))
# how often a task is drawn
WEIGHTS = {
    "fact": 3, "backward": 2.5, "hops": 3, "values": 1.5, "questions": 1.5, "count": 1, "keys": 1.5,
    "table": 2.5, "variable": 3.5, "frequent": 1, "passage": 1,
}  # fmt: skip
STATEMENTS = 0.85  # of a document, at most; the rest is hay


class Learnt(NamedTuple):
    """A part of an answer: tokens begin to end - 1 of the sequence."""

    begin: int
    end: int
    is_value: bool
    is_closing: bool
    answer: int


@dataclass
class Sequence:
    """Tokens, and what is learnt of them.

    Attributes:
        tasks: of each answer: its task, and is it short?
    """

    ids: Ids
    learnt: list[Learnt]
    tasks: list[tuple[int, bool]]


class Turn(NamedTuple):
    """A question with how it is answered."""

    exchange: Exchange
    instruction: Ids  # to answer with the value only, or nothing

    @property
    def is_short(self) -> bool:
        return bool(self.instruction)

    def n_tokens(self) -> int:
        answer = (
            self.exchange.short
            if self.is_short
            else [i for ids, _ in self.exchange.full for i in ids]
        )
        # with the marks of two turns
        return len(self.exchange.asked) + len(self.instruction) + len(answer) + 12


class Maker:
    """Makes sequences; another seed makes others.

    Args:
        folder: what corpus.py has written.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.spelling = spelling = Spelling(folder / "tokenizer.json")
        self._hay = Hay(spelling, folder, rng)
        pools = Pools(spelling, folder, rng)
        facts, structures = Facts(spelling, pools, rng), Structures(spelling, pools, rng)
        self._structures = structures
        self._families: dict[str, Callable[[int, Used], list[Item]]] = {
            "fact": facts.facts, "backward": facts.backward, "hops": facts.hops, "values": facts.values,
            "questions": facts.questions, "count": facts.counts, "keys": structures.keys,
            "table": lambda n, used: structures.table(rng.randint(3, 2 + n), used),
            "variable": structures.variables,
            "frequent": lambda n, used: structures.frequent(60 * n, used),
            "passage": lambda n, used: self._passages(n),
        }  # fmt: skip
        token = spelling.tokenizer.token_to_id
        self._line = spelling.encode("\n")
        self._blank = self._line + self._line
        stop = token("<|im_end|>")
        self._user = array("H", [token("<|im_start|>"), *spelling.encode("user"), *self._line])
        self._assistant = array(
            "H", [token("<|im_start|>"), *spelling.encode("assistant"), *self._line]
        )
        self._stop, self._over = stop, array("H", [stop, *self._line])
        self._short = [spelling.encode(f" {text}") for text in frames.SHORT]
        self._before = [spelling.encode(text.rstrip()) for text in frames.BEFORE]
        self._heads = [spelling.encode(text) for text in frames.KEYS_HEAD]
        self._passage_asked = [spelling.encode(text) for text in frames.PASSAGE_ASKED]
        self._passage_spaced = [spelling.encode(f" {text}") for text in frames.PASSAGE_ASKED]

    def _passages(self, n: int) -> list[Item]:
        items = []
        for _ in range(n):
            found = self._hay.passage()
            if found is None:
                continue
            run, begin, rest = found
            i = self.rng.randrange(len(self._passage_asked))
            asked, spaced = self._passage_asked[i] + begin, self._passage_spaced[i] + begin
            items.append(
                Item([(run, run)], Exchange("passage", asked, spaced, [(rest, True)], Ids("H")))
            )
        return items

    def _turn(self, exchange: Exchange) -> Turn:
        is_short = len(exchange.short) > 0 and self.rng.random() < 0.3
        return Turn(exchange, self.rng.choice(self._short) if is_short else Ids("H"))

    def _draw(self, n: int, used: Used, style: str) -> tuple[list[Item], list[Turn]]:
        """What a document of about n tokens, questions included, says and is asked."""
        rng = self.rng
        share = next(s for most, s in SHARES if n <= most)
        few = style == "prose" and rng.random() < 0.2
        want = 40 * rng.randint(1, 4) if few else n * share * rng.uniform(0.6, 1.2)
        names = (
            [style]
            if style != "prose"
            else rng.choices(list(WEIGHTS), [*WEIGHTS.values()], k=rng.randint(1, 4))
        )
        items: list[Item] = []
        turns: list[Turn] = []
        n_said = n_asked = 0
        for _ in range(n):
            size = rng.randint(2, min(10, 2 + n // 250))
            if style in ("table", "frequent"):
                size = max(size, n // 90)
            new = self._families[rng.choice(names)](size, used)
            asked = []
            for item in new:
                if item.exchange is not None and rng.random() < (0.8 if len(new) > 1 else 1):
                    asked.append(self._turn(item.exchange))
            if style == "frequent" or len(new) > 6:
                asked = rng.sample(asked, rng.randint(1, len(asked))) if asked else []
            cost = sum(len(spaced) + 3 for item in new for spaced, _ in item.said)
            costs = [turn.n_tokens() for turn in asked]
            if n_said + cost > STATEMENTS * (n - n_asked - sum(costs)):
                if turns or size == 2:
                    break
                names = ["fact"]
                style = "prose"
                continue
            items += new
            turns += asked
            n_said, n_asked = n_said + cost, n_asked + sum(costs)
            if n_asked >= want or style in ("table", "frequent"):
                break
        rng.shuffle(turns)
        return items, turns

    def _document(self, out: Ids, n: int, items: list[Item], is_lines: bool) -> None:
        """Statements in hay, or nothing but statements, each in a line of its own."""
        rng = self.rng
        self._hay.begin()
        # each item's statements take places of their own; those in order take them sorted
        whole = [item for item in items if item.said]
        n_hay = n - sum(len(spaced) + 3 for item in whole for spaced, _ in item.said)
        placed: list[tuple[float, Item, int]] = []
        for item in whole:
            if item.is_block:
                placed.append((rng.random(), item, -1))
                continue
            places = [rng.random() for _ in item.said]
            if item.in_order:
                places.sort()
            placed += [(place, item, i) for i, place in enumerate(places)]
        placed.sort(key=lambda p: p[0])
        begin = len(out)
        if is_lines and rng.random() < 0.5:
            out.extend(rng.choice(self._heads))
            out.extend(self._blank)
        written = 0
        for place, item, i in placed:
            if not is_lines:
                gap = int(place * n_hay) - written - 8
                if gap > 0:
                    before = len(out)
                    self._hay.write(out, gap)
                    written += len(out) - before
            at_line = len(out) == begin or out[-1] == self._line[0]
            if i < 0 or is_lines:
                if not at_line:
                    out.extend(self._line if is_lines else self._blank)
                lines = item.said if i < 0 else [item.said[i]]
                for j, (_, first) in enumerate(lines):
                    out.extend(self._line if j else Ids("H"))
                    out.extend(first)
                out.extend(self._line if is_lines else self._blank)
                continue
            if not at_line and rng.random() < 0.12:
                out.extend(self._blank)
                at_line = True
            out.extend(item.said[i][1] if at_line else item.said[i][0])
        if not is_lines:
            self._hay.write(out, n_hay - written)
        while len(out) > begin and out[-1] == self._line[0]:
            out.pop()

    def _answer(self, out: Ids, turn: Turn, number: int, learnt: list[Learnt]) -> None:
        exchange = turn.exchange
        parts = [(exchange.short, True)] if turn.is_short else exchange.full
        for ids, is_value in parts:
            begin = len(out)
            out.extend(ids)
            learnt.append(Learnt(begin, len(out), is_value, False, number))
        out.append(self._stop)
        learnt.append(Learnt(len(out) - 1, len(out), False, True, number))
        out.extend(self._line)

    def sequence(self, length: int) -> Sequence:
        """A sequence of so many tokens."""
        rng = self.rng
        out, learnt, tasks = Ids("H"), [], []
        used = Used()
        n_parts = 1 if length < 1024 or rng.random() < 0.6 else rng.randint(2, 4)
        for part in range(n_parts):
            n = (length - len(out)) // (n_parts - part)
            if n < 150:
                break
            style = rng.choices(("prose", "keys", "table", "frequent", "fact"), (80, 6, 4, 3, 7))[0]
            items, turns = self._draw(n - 8, used, style)
            n_document = n - 8 - sum(turn.n_tokens() for turn in turns)
            is_first = rng.random() < 0.12 and bool(turns)
            out.extend(self._user)
            if is_first:
                self._ask_first(out, turns[0])
                out.extend(self._blank)
            self._document(out, n_document, items, style in ("keys", "fact"))
            for i, turn in enumerate(turns):
                if i:
                    out.extend(self._user)
                elif not is_first:
                    out.extend(self._blank)
                if i or not is_first:
                    out.extend(turn.exchange.asked)
                    out.extend(turn.instruction)
                out.extend(self._over)
                out.extend(self._assistant)
                tasks.append((TASKS.index(turn.exchange.task), turn.is_short))
                self._answer(out, turn, len(tasks) - 1, learnt)
            if not turns:
                out.extend(self._over)
        if len(out) < length:
            self._hay.begin()
            out.extend(self._user)
            self._hay.write(out, max(1, length - len(out)))
        # an answer that is cut off is not learnt
        cut = {part.answer for part in learnt if part.end > length}
        return Sequence(out[:length], [part for part in learnt if part.answer not in cut], tasks)

    def _ask_first(self, out: Ids, turn: Turn) -> None:
        begins = self.rng.choice(self._before)
        out.extend(begins)
        out.extend(turn.exchange.asked_spaced if begins else turn.exchange.asked)
        out.extend(turn.instruction)
