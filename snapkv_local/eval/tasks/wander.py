"""Answers that come to what the question does not name: ten facts in turn, and a second step.

The rows of these facts are not asked for when the prompt ends; what asks for them is the answer's own
text. So the answer is given up to each value, as a model that reasons would have written it, and the
value is scored. RULER's chains of variables (arXiv 2404.06654, section 3.2) have all steps in the prompt.
"""

from __future__ import annotations

from snapkv_local.eval.draft import Draft, Planted, Question
from snapkv_local.eval.prose import prose
from snapkv_local.eval.tasks.task import Drafted, Order
from snapkv_local.eval.words import (
    CITIES,
    CITY,
    COLOUR,
    COLOURS,
    NAMES,
    ROOM,
    Pattern,
    own,
    rooms,
)

N_FACTS = 10

_EACH = "Go through all people of whom the text says something special, and say it of each in turn."
_FRIEND = "{who} tells everything to one friend only, and that is {other}. "
_SECOND = "In whom does {who} confide, and what is special about that person?"
_FIRST_STEP = (
    "{who} tells everything to {other}. So the question is what the text says of {other}. "
)


def in_turn(order: Order) -> Draft:
    """Ten facts, and an answer that names all of them; each value is a case. Questions are not counted."""
    facts = _facts(order, N_FACTS)
    written, questions = "", []
    for who, (statement, _, opening), value in facts:
        written += f"Next comes {who}. "
        questions.append(Question(_EACH, written + opening.format(who=who), f" {value}"))
        written += statement.format(who=who, x=value) + " "
    return _draft(order, [_planted(order, fact) for fact in facts], questions)


def second_step(order: Order) -> Draft:
    """Each question is about one person, and its answer a fact about another, whom it does not name."""
    n = order.wanted.n_questions
    names = order.rng.sample(own(NAMES, order.split), len(own(NAMES, order.split)))
    facts = _facts(order, n)
    friends = [who for who, _, _ in facts]
    others = [name for name in names if name not in friends]
    planted, questions = [], []
    for i, fact in enumerate(facts):
        (other, (_, _, opening), value), who = fact, others[i % len(others)]
        friend = _FRIEND.format(who=who, other=other)
        planted += [_planted(order, fact), Planted(friend, round(order.rng.random(), 4))]
        step = _FIRST_STEP.format(who=who, other=other)
        questions.append(
            Question(_SECOND.format(who=who), step + opening.format(who=other), f" {value}")
        )
    return _draft(order, planted, questions)


TASKS = (Drafted("in-turn", in_turn), Drafted("second-step", second_step))

_Fact = tuple[str, Pattern, str]


def _facts(order: Order, n: int) -> list[_Fact]:
    """Of n people: who, in which words, and the value."""
    rng, split = order.rng, order.split
    names = rng.sample(own(NAMES, split), n)
    values = (
        rng.sample(own(CITIES, split), len(own(CITIES, split))),
        rng.sample(own(COLOURS, split), len(own(COLOURS, split))),
        rooms(rng, split, n),
    )
    kinds = (CITY, COLOUR, ROOM)
    facts = []
    for i, who in enumerate(names):
        kind, round_of = (order.index + i) % len(kinds), i // len(kinds)
        patterns = own(kinds[kind], split)
        pattern = patterns[(order.index // 3 + round_of) % len(patterns)]
        facts.append((who, pattern, values[kind][round_of % len(values[kind])]))
    return facts


def _planted(order: Order, fact: _Fact) -> Planted:
    who, (statement, _, _), value = fact
    return Planted(statement.format(who=who, x=value) + " ", round(order.rng.random(), 4))


def _draft(order: Order, planted: list[Planted], questions: list[Question]) -> Draft:
    filler = prose(order.rng, order.split, order.length, order.index)
    return Draft(tuple(filler), tuple(planted), tuple(questions))
