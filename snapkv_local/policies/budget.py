"""How many rows a prompt keeps under SnapKVConfig's budget or keep_ratio, whatever chooses them."""

from __future__ import annotations

import math

import numpy as np

from snapkv_local.errors import ConfigError


def check(budget: int | None, window_size: int, n_sink: int) -> None:
    """Raise ConfigError if the budget leaves no row to select."""
    protected = window_size + n_sink
    if budget is not None and budget <= protected:
        raise ConfigError(
            f"budget={budget}",
            f"leaves no row to select: window_size={window_size} and n_sink={n_sink} take {protected} "
            "already",
            "raise the budget or lower the window",
        )


def n_kept(
    n_prompt: int, budget: int | None, keep_ratio: float | None, window_size: int, n_sink: int
) -> int:
    """Rows kept for each KV head, the window included; n_prompt if nothing is evicted.

    The budget counts the window in (arXiv 2404.14469, section 4.2); the ratio p is of the prefix
    alone, floor(p * (n - w)) (listing 1).
    """
    n_prefix = n_prompt - window_size
    if n_prefix <= 0:
        return n_prompt
    if budget is not None:
        return min(budget, n_prompt)
    assert keep_ratio is not None, "SnapKVConfig sets one of the two"
    n_selected = math.floor(native_ratio(keep_ratio) * n_prefix)
    return min(max(n_selected, n_sink) + window_size, n_prompt)


def native_ratio(keep_ratio: float) -> float:
    """The least float32 that is not below the ratio, which the native engine calculates with.

    The nearest one would do to 0.7 of 500 rows what it does to the number itself: 349.
    """
    nearest = np.float32(keep_ratio)
    # compared as float: NumPy would round the ratio to float32 first
    return float(nearest if float(nearest) >= keep_ratio else np.nextafter(nearest, np.float32(2)))
