"""Rows by number: what is protected, and the best of the rest."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from snapkv_local.errors import ConfigError
from snapkv_local.policies.view import PromptView

Ids = npt.NDArray[np.int32]  # [n_head_kv, n_rows], ascending
Positions = npt.NDArray[np.int64]  # [n], ascending
Scores = npt.NDArray[np.float32]  # [n_head_kv, n_prefix]


def n_prefix(prompt: PromptView) -> int:
    """Positions before the window; 0 if the window covers the prompt."""
    return max(0, prompt.n_prompt - prompt.window_size)


def protected(prompt: PromptView, n_sink: int = 0) -> Positions:
    """Prefix positions that always stay: the first ones, and the prompt's protected spans.

    Raises:
        ConfigError: a span is not within the prompt.
    """
    stays = np.zeros(n_prefix(prompt), dtype=bool)
    stays[:n_sink] = True
    for begin, end in prompt.protected:
        if not 0 <= begin <= end <= prompt.n_prompt:
            raise ConfigError(
                f"protected span [{begin}, {end})",
                f"is not within the prompt of {prompt.n_prompt} tokens",
                "give [begin, end) positions of the prompt",
            )
        stays[begin:end] = True
    return np.flatnonzero(stays)


def check_n_rows(prompt: PromptView, n_rows: int, n_always: int) -> None:
    """Refuse a number of rows that is not a part of the prefix or does not hold what is protected.

    Raises:
        ConfigError: it is out of that range.
    """
    n = n_prefix(prompt)
    if not 0 <= n_rows <= n:
        raise ConfigError(
            f"n_rows={n_rows}",
            f"the prompt has {n} rows before its window of {prompt.window_size}",
            f"give 0 to {n}",
        )
    if n_rows < n_always:
        raise ConfigError(
            f"n_rows={n_rows}",
            f"does not hold {n_always} protected rows (sinks and marked spans)",
            f"raise the budget to {n_always + prompt.window_size} or more, or protect less",
        )


def best(scores: Scores, n_rows: int, always: Iterable[int] | Positions = ()) -> Ids:
    """The rows with the best scores; of equal ones the lower position.

    Args:
        scores: [n_head_kv, n_prefix]. NaN ranks last.
        n_rows: of each head.
        always: positions that come first whatever their scores, at most n_rows.

    Returns:
        [n_head_kv, n_rows], ascending.
    """
    n_head_kv, n = scores.shape
    ids = np.empty((n_head_kv, n_rows), dtype=np.int32)
    if n_rows in (0, n):
        ids[:] = np.arange(n_rows)
        return ids
    # below what always stays
    ranked = np.minimum(scores, np.finfo(np.float32).max)
    ranked[np.isnan(ranked)] = -np.inf
    ranked[:, np.fromiter(always, dtype=np.int64)] = np.inf
    least = np.partition(ranked, n - n_rows, axis=1)[:, n - n_rows]
    for row, bound, out in zip(ranked, least, ids, strict=True):
        above = np.flatnonzero(row > bound)
        equal = np.flatnonzero(row == bound)[: n_rows - len(above)]
        out[:] = np.sort(np.concatenate([above, equal]))
    return ids
