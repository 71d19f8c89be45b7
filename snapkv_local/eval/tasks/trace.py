"""Variables that get a number, or another variable's: which of them have a given number?

In the manner of RULER's variable tracking (arXiv 2404.06654, section 3.2), in prose that is not one
sentence again and again. Small models fail at it with the full cache, too; how far the logits move still
counts.
"""

from __future__ import annotations

from snapkv_local.eval.draft import Draft, Planted, Question
from snapkv_local.eval.prose import prose
from snapkv_local.eval.tasks.task import Drafted, Order
from snapkv_local.eval.words import made_up

HOPS = 3


def trace(order: Order) -> Draft:
    """One chain of variables for each question; the others distract."""
    rng, n_questions = order.rng, order.wanted.n_questions
    names = [name.upper() for name in made_up(rng, order.split, n_questions * (HOPS + 1))]
    numbers = rng.sample(range(10_000, 100_000), n_questions)
    planted, questions = [], []
    for i, number in enumerate(numbers):
        chain = names[i * (HOPS + 1) : (i + 1) * (HOPS + 1)]
        values = [str(number), *(f"VAR {name}" for name in chain[:-1])]
        depths = sorted(round(rng.random(), 4) for _ in chain)
        for name, value, depth in zip(chain, values, depths, strict=True):
            planted.append(Planted(f"VAR {name} = {value}. ", depth))
        questions.append(
            Question(
                f"Find all variables that are assigned the value {number}, directly or through "
                "another variable.",
                f"The variables with the value {number} are",
                f" {', '.join(chain)}",
            )
        )
    filler = prose(rng, order.split, order.length, order.index)
    return Draft(tuple(filler), tuple(planted), tuple(questions))


TASKS = (Drafted("trace", trace),)
