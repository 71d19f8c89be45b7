"""Facts in a long text, each asked for in other words: a city, a colour, a room of three digits.

Short answers, where exact counts separate policies. After "needle in a haystack" (Kamradt, 2023) and
RULER (arXiv 2404.06654, section 3.1).
"""

from __future__ import annotations

import math
import random
from dataclasses import replace

from snapkv_local.eval.draft import Draft, Planted, Question
from snapkv_local.eval.prose import prose
from snapkv_local.eval.tasks.task import Drafted, Order
from snapkv_local.eval.words import CITIES, CITY, COLOUR, COLOURS, NAMES, ROOM, Split, own, rooms


def needle(order: Order) -> Draft:
    """One fact for each question."""
    return _draft(order, n_distractors=0)


def needles(order: Order) -> Draft:
    """Beside each fact, four of the same form about other people."""
    return _draft(order, n_distractors=4)


def question_first(order: Order) -> Draft:
    """As needle, with the question before the document."""
    return replace(needle(order), layout="question first")


def question_after(order: Order) -> Draft:
    """As needle, where the question comes only when the document is compressed already."""
    return replace(needle(order), layout="question after")


TASKS = (
    Drafted("needle", needle),
    Drafted("needles", needles),
    Drafted("question-first", question_first),
    Drafted("question-after", question_after),
)


def _draft(order: Order, n_distractors: int) -> Draft:
    rng, split = order.rng, order.split
    names = rng.sample(own(NAMES, split), len(own(NAMES, split)))
    kinds = [CITY, COLOUR, ROOM]
    planted, questions = [], []
    for i in range(order.wanted.n_questions):
        kind = (order.index + i) % len(kinds)
        patterns = own(kinds[kind], split)
        statement, words, opening = patterns[(order.index // 3 + i // 3) % len(patterns)]
        values = _values(kind, 1 + n_distractors, rng, split)
        depths = [order.depth(i), *(round(rng.random(), 4) for _ in range(n_distractors))]
        for j, (value, depth) in enumerate(zip(values, depths, strict=True)):
            # patterns and names together begin anew after so many questions: then with the next name
            shift = i // math.lcm(len(kinds) * len(patterns), len(names))
            who = names[(i * (1 + n_distractors) + j + shift) % len(names)]
            planted.append(Planted(statement.format(who=who, x=value) + " ", depth))
            if j == 0:
                questions.append(
                    Question(words.format(who=who), opening.format(who=who), f" {value}", depth)
                )
    filler = prose(rng, split, order.length, order.index)
    return Draft(tuple(filler), tuple(planted), tuple(questions))


def _values(kind: int, n: int, rng: random.Random, split: Split) -> list[str]:
    """n different answers."""
    if kind < 2:
        return rng.sample(own((CITIES, COLOURS)[kind], split), n)
    return rooms(rng, split, n)
