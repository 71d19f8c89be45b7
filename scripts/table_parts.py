"""What all tables are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from snapkv_local.report.units import GIB


def size(value: float | None, unit: int) -> str:
    """Bytes in MiB or GiB; "-" for None."""
    return "-" if value is None else f"{value / unit:.1f} {'GiB' if unit == GIB else 'MiB'}"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table."""

    def line(cells: list[str]) -> str:
        return ("| " + " | ".join(cells) + " |").replace("|  |", "| |")

    return [line(head), "|" + "---|" * len(head), *map(line, rows)]


def commit(record: dict[str, Any]) -> str:
    """Of the tree that measured, short; with a + if it had changes."""
    found = record["commit"] or "unknown"
    return found[:9] + ("+" if found.endswith("+") else "")


def where(record: dict[str, Any]) -> str:
    """The device of a record, or the machine, and the commit."""
    device = (record.get("device") or {}).get("name")
    machine = device or f"{record['machine']['cpu']}, {record['machine']['cores']} cores"
    return f"{machine}; commit {commit(record)}"


def by_policy(
    record: dict[str, Any],
    policies: Iterable[str],
    needed: str,
    text: Callable[[dict[str, Any]], str],
) -> list[list[str]]:
    """Of a record of `eval`: a line for each task, length and budget, with a column for each policy.

    Args:
        policies: those of the columns; "full" is the full cache.
        needed: the policy without which there is no line.
        text: what a column says of a row of the summary.
    """
    summary = [row for row in record["summary"] if row["length"]]
    cells = {(r["task"], r["length"], r["budget"], r["policy"]): r for r in summary}
    rows = []
    for task, length, budget, policy in cells:
        if policy != needed:
            continue
        found = [cells[task, length, None if name == "full" else budget, name] for name in policies]
        n = f"{found[0]['n_cases']} ({found[0]['n_documents']})"
        called = f"{record['model']['name']}, `{task}`, {length // 1024}K"
        rows.append([called, n, str(budget), *map(text, found)])
    return rows
