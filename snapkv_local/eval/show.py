"""Numbers of a summary as text."""

from __future__ import annotations

from typing import Any

from snapkv_local.eval.scores import SCORES

Interval = list[float | None]
Row = dict[str, Any]

NONE = "-"


def mean(name: str, interval: Interval) -> str:
    """Of a score, 83% or 0.310."""
    value = interval[0]
    if value is None:
        return NONE
    return f"{100 * value:.0f}%" if SCORES[name].is_share else f"{value:.3f}"


def between(name: str, interval: Interval) -> str:
    """Its interval, 71..92 or 0.25..0.38; "" if there is none."""
    return _between(name, interval, "")


def difference(name: str, interval: Interval) -> str:
    """Of two scores, +4 in percentage points or -0.125."""
    value = interval[0]
    if value is None:
        return NONE
    return f"{100 * value:+.0f}" if SCORES[name].is_share else f"{value:+.3f}"


def difference_between(name: str, interval: Interval) -> str:
    """Its interval, -2..+9 or -0.20..-0.05; "" if there is none."""
    return _between(name, interval, "+")


def _between(name: str, interval: Interval, sign: str) -> str:
    _, low, high = interval
    if low is None or high is None:
        return ""
    if SCORES[name].is_share:
        return f"{100 * low:{sign}.0f}..{100 * high:{sign}.0f}"
    return f"{low:{sign}.2f}..{high:{sign}.2f}"


def verdict(name: str, interval: Interval) -> str:
    """better, worse, or "" where the interval of a difference holds 0 or there is none."""
    _, low, high = interval
    if low is None or high is None or low <= 0 <= high:
        return ""
    return "better" if (low > 0) == SCORES[name].higher_is_better else "worse"


def policy(row: Row) -> str:
    """Of a row, its policy."""
    return "full cache" if row["policy"] == "full" else str(row["policy"])


def group(row: Row) -> str:
    """Of a row, its task and length."""
    if row["task"] == "all":
        return "all tasks"
    return str(row["task"]) if row["length"] is None else f"{row['task']} {row['length']:,}"


def groups(summary: list[Row]) -> dict[str, list[Row]]:
    """Rows by group, in their order."""
    found: dict[str, list[Row]] = {}
    for row in summary:
        found.setdefault(group(row), []).append(row)
    return found
