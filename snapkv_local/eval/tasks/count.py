"""A list of made-up words: which of them occurs most often?

In the manner of RULER's frequent words (arXiv 2404.06654, section 3.3). The answer is everywhere in the
document, so that any row that is dropped could matter.
"""

from __future__ import annotations

from snapkv_local.errors import ConfigError
from snapkv_local.eval.draft import Draft, Question
from snapkv_local.eval.tasks.task import Drafted, Order
from snapkv_local.eval.words import made_up

# how often in each block of words, first the most frequent; the rest of a block are words that occur
# less than once a block. After two whole blocks the order is the same wherever the list ends.
TIMES = (8, 5, 3)
BLOCK = 40
RANKS = ("most", "second most", "third most")


def count(order: Order) -> Draft:
    """A question for each of the three most frequent words."""
    rng, n_questions = order.rng, order.wanted.n_questions
    if n_questions > len(TIMES):
        raise ConfigError(
            f"{n_questions} questions", f"task count has {len(TIMES)}", "ask for fewer --questions"
        )
    words = made_up(rng, order.split, len(TIMES) + 2 * BLOCK)
    frequent, rare = words[: len(TIMES)], words[len(TIMES) :]
    listed: list[str] = []
    while len(listed) < order.length:
        block = [word for word, n in zip(frequent, TIMES, strict=True) for _ in range(n)]
        block += rng.sample(rare, BLOCK - len(block))
        listed += rng.sample(block, len(block))
    questions = tuple(
        Question(
            f"Which word is the {rank} frequent in the list?",
            f"The {rank} frequent word in the list is",
            f" {word}",
        )
        for rank, word in zip(RANKS, frequent[:n_questions], strict=False)
    )
    # two blocks as one piece, which is always there
    before = "A list of words: " + "".join(f"{word} " for word in listed[: 2 * BLOCK])
    filler = tuple(f"{word} " for word in listed[2 * BLOCK :])
    return Draft(filler, (), questions, before=before)


TASKS = (Drafted("count", count),)
