"""Keys of eight digits and letters, or of 32 hexadecimal digits, with values of six digits, and nothing
else in the document.

A stress test: long strings without meaning are what selection by attention is worst at. After RULER's
multi-key task (arXiv 2404.06654, section 3.1).
"""

from __future__ import annotations

import random
from collections.abc import Callable

from snapkv_local.eval.draft import Draft, Planted, Question
from snapkv_local.eval.tasks.task import Drafted, Order
from snapkv_local.eval.words import SPLITS, Split


def keys(order: Order) -> Draft:
    """Keys of eight."""
    return _draft(order, _key)


def hex_keys(order: Order) -> Draft:
    """Keys as long as UUIDs, of which RULER's hardest such task is made."""
    return _draft(order, _hex_key)


TASKS = (Drafted("keys", keys), Drafted("hex-keys", hex_keys))


def _draft(order: Order, key_of: Callable[[random.Random, Split], str]) -> Draft:
    """Some of the lines are asked for."""
    rng, n_questions = order.rng, order.wanted.n_questions
    pairs: dict[str, str] = {}
    # a line is two words and more than two tokens
    while len(pairs) < n_questions + order.length // 2:
        pairs[key_of(rng, order.split)] = f"{rng.randrange(10**6):06}"
    lines = list(pairs.items())
    planted, questions = [], []
    for i, (key, value) in enumerate(lines[:n_questions]):
        depth = order.depth(i)
        planted.append(Planted(f"{key}: {value}\n", depth))
        questions.append(
            Question(
                f"What is the value of the key {key}?", f"The value of {key} is", f" {value}", depth
            )
        )
    filler = tuple(f"{key}: {value}\n" for key, value in lines[n_questions:])
    return Draft(filler, tuple(planted), tuple(questions), before="Keys and their values:\n\n")


def _key(rng: random.Random, split: Split) -> str:
    letters = "abcdefgh" if SPLITS.index(split) == 0 else "stuvwxyz"
    return "".join(rng.choice(letters + "0123456789") for _ in range(7)) + rng.choice(letters)


def _hex_key(rng: random.Random, split: Split) -> str:
    last = "02468ace" if SPLITS.index(split) == 0 else "13579bdf"
    return f"{rng.getrandbits(124):031x}" + rng.choice(last)
