"""KL to the full cache over the budget: where it comes to a target."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

STEP = 32  # budgets are multiples of it

# log-log interpolation has no zero; less than this is no difference that anybody sees
_FLOOR = 1e-4


def bracket(kl: Mapping[int, float], target: float, n_prompt: int) -> tuple[int, int]:
    """Between which budgets the target is reached for good.

    Args:
        kl: mean KL by budget, in nats.
        n_prompt: the budget that keeps everything.

    Returns:
        The largest budget that misses the target, 0 if none does, and the next measured one above
        it, n_prompt if there is none.
    """
    low = max((budget for budget, value in kl.items() if value > target), default=0)
    return low, min((budget for budget in kl if budget > low), default=n_prompt)


def needed(kl: Mapping[int, float], target: float, n_prompt: int) -> float:
    """The budget at which the target is reached, by interpolation of log KL over log budget.

    Where all budgets reach it the smallest one, a little less if its KL is far below the target.
    """
    low, high = bracket(kl, target, n_prompt)
    if low == 0:
        return high * (1 - 0.01 * (1 - kl[high] / target))
    y_low = math.log(max(kl[low], _FLOOR))
    y_high = math.log(max(kl.get(high, 0.0), _FLOOR))
    y = math.log(max(target, _FLOOR))
    share = (y_low - y) / (y_low - y_high) if y_low > y_high else 1.0
    return math.exp(math.log(low) + min(1.0, share) * (math.log(high) - math.log(low)))


def between(low: int, high: int, n: int) -> list[int]:
    """Up to n budgets between two, at even ratios, multiples of STEP."""
    first = max(low, STEP)
    ratio = (high / first) ** (1 / (n + 1))
    found = {round(first * ratio**i / STEP) * STEP for i in range(1, n + 1)}
    if high - low <= (n + 1) * STEP:
        found = set(range(low // STEP * STEP + STEP, high, STEP))
    return sorted(budget for budget in found if low < budget < high)


def few(n_prompt: int, shares: Sequence[float], least: int) -> list[int]:
    """Budgets of some shares of a prompt, multiples of STEP, none below the least one."""
    least = math.ceil(least / STEP) * STEP
    found = {max(least, round(n_prompt * share / STEP) * STEP) for share in shares}
    return sorted(budget for budget in found if budget < n_prompt)
