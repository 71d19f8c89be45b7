"""The parts of a prompt that a compression knows: positions that stay, the question, sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from snapkv_local.errors import ConfigError
from snapkv_local.prompt.spelling import Span


@dataclass(frozen=True)
class Parts:
    """Of one prompt, in positions.

    Attributes:
        protected: [begin, end) spans whose rows always stay.
        question: [begin, end) of the question's words, for policies that ask.
        asked: the same, for votes that go to the last tokens where it is not known.
        sentences: first position of each sentence, ascending.
    """

    protected: tuple[Span, ...] = ()
    question: Span | None = None
    asked: Span | None = None
    sentences: tuple[int, ...] | None = None


def ranges(subject: str, spans: Sequence[Span]) -> tuple[Span, ...]:
    """The spans, if they are some.

    Raises:
        ConfigError: one is not a range of positions.
    """
    for begin, end in spans:
        if not 0 <= begin <= end:
            raise ConfigError(
                subject,
                f"has [{begin}, {end}), which is not a range",
                "give pairs of begin and end, with begin first",
            )
    return tuple((int(begin), int(end)) for begin, end in spans)


def check(parts: Parts, n_prompt: int, n_kept: int, window_size: int) -> None:
    """Refuse parts with which a prompt cannot be compressed.

    Args:
        n_kept: rows for each KV head, the window included.

    Raises:
        ConfigError: more rows are protected than kept, or most of the prompt is the question.
    """
    if n_kept >= n_prompt:
        return
    stays = np.zeros(max(0, n_prompt - window_size), dtype=bool)
    for begin, end in parts.protected:
        stays[max(0, begin) : max(0, end)] = True
    n = int(stays.sum())
    if n + window_size > n_kept:
        raise ConfigError(
            f"a budget of {n_kept} rows",
            f"does not hold {n} protected ones, such as the system prompt's, and the window's "
            f"{window_size}",
            f"raise it to {n + window_size} or more, or protect less",
        )
    begin, end = parts.question or (0, 0)
    if end - begin > n_prompt // 2:
        raise ConfigError(
            f"the question of {end - begin} tokens",
            f"is most of the prompt of {n_prompt}: a document and a question are told apart by an "
            "empty line between them",
            "put one there, say where the question is with Llama.set_question(), or choose policy "
            "snapkv",
        )
