"""Answers that need several facts: all values of one person, and several people asked for at once.

After RULER's tasks of several values and of several queries (arXiv 2404.06654, section 3.1). An answer is
scored token by token, so its values have one order: that of the document, or of the question.
"""

from __future__ import annotations

from snapkv_local.eval.draft import Draft, Planted, Question
from snapkv_local.eval.prose import prose
from snapkv_local.eval.tasks.task import Drafted, Order
from snapkv_local.eval.words import NAMES, THINGS, own, rooms

N_FACTS = 4  # of each answer


def values(order: Order) -> Draft:
    """Each question is about one person, who has several things of a kind."""
    rng, split = order.rng, order.split
    names = rng.sample(own(NAMES, split), len(own(NAMES, split)))
    planted, questions = [], []
    for thing, who in zip(_things(order), names, strict=False):
        numbers = rooms(rng, split, N_FACTS)
        depths = sorted(round(rng.random(), 4) for _ in numbers)
        planted += [
            Planted(f"{who} has a {thing} with the number {number}. ", depth)
            for number, depth in zip(numbers, depths, strict=True)
        ]
        asked = f"{thing}s of {who}"
        questions.append(_question(asked, numbers))
    return _draft(order, planted, questions)


def queries(order: Order) -> Draft:
    """Each question is about several people, who have a thing of a kind each."""
    rng, split = order.rng, order.split
    planted, questions = [], []
    for thing in _things(order):
        people = rng.sample(own(NAMES, split), N_FACTS)
        numbers = rooms(rng, split, N_FACTS)
        planted += [
            Planted(f"The {thing} of {who} has the number {number}. ", round(rng.random(), 4))
            for who, number in zip(people, numbers, strict=True)
        ]
        asked = f"{thing}s of {', '.join(people[:-1])} and {people[-1]}"
        questions.append(_question(asked, numbers))
    return _draft(order, planted, questions)


TASKS = (Drafted("values", values), Drafted("queries", queries))


def _things(order: Order) -> list[str]:
    """A kind of things for each question."""
    return order.rng.sample(own(THINGS, order.split), order.wanted.n_questions)


def _question(asked: str, numbers: list[str]) -> Question:
    return Question(
        f"Which numbers have the {asked}?",
        f"The {asked} have the numbers",
        f" {', '.join(numbers)}",
    )


def _draft(order: Order, planted: list[Planted], questions: list[Question]) -> Draft:
    filler = prose(order.rng, order.split, order.length, order.index)
    return Draft(tuple(filler), tuple(planted), tuple(questions))
