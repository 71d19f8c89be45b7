"""How many rows a prompt keeps under SnapKVConfig's budget or ratio, whatever chooses them."""

from __future__ import annotations

import math

import numpy as np

from snapkv_local.errors import ConfigError


def check(budget: int | None, window: int, sinks: int) -> None:
    """Raise ConfigError if the budget leaves no row to select."""
    protected = window + sinks
    if budget is not None and budget <= protected:
        raise ConfigError(
            f"budget={budget}",
            f"leaves no row to select: window={window} and sinks={sinks} take {protected} already",
            "raise the budget or lower the window",
        )


def n_kept(n_prompt: int, budget: int | None, ratio: float | None, window: int, sinks: int) -> int:
    """Rows kept for each KV head, the window included; n_prompt if nothing is evicted.

    The budget counts the window in (arXiv 2404.14469, section 4.2); the ratio p is of the prefix
    alone, floor(p * (n - w)) (listing 1).
    """
    n_prefix = n_prompt - window
    if n_prefix <= 0:
        return n_prompt
    if budget is not None:
        return min(budget, n_prompt)
    assert ratio is not None, "SnapKVConfig sets one of the two"
    n_selected = math.floor(native_ratio(ratio) * n_prefix)
    return min(max(n_selected, sinks) + window, n_prompt)


def native_ratio(ratio: float) -> float:
    """The least float32 that is not below the ratio, which the native engine calculates with.

    The nearest one would do to 0.7 of 500 rows what it does to the number itself: 349.
    """
    nearest = np.float32(ratio)
    # compared as float: NumPy would round the ratio to float32 first
    return float(nearest if float(nearest) >= ratio else np.nextafter(nearest, np.float32(2)))
