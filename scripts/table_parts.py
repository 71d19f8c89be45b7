"""What all tables are made of."""

from __future__ import annotations

import re
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


def former(record: dict[str, Any]) -> str:
    """Of a record of `eval` that measured another default than today's: which one; "" of others."""
    if "snapkv" in record["settings"]:
        return ""
    named = re.compile(r"(^|=)(snapkv(:|$)|joint$)")
    if not any(named.search(policy) for policy in record["settings"]["policies"]):
        return ""
    return "; `snapkv` stands for the default before `nosink`: pooling without the largest vote"


def commit(record: dict[str, Any]) -> str:
    """Of the tree that measured, short; with a + if it had changes."""
    found = record["commit"] or "unknown"
    return found[:9] + ("+" if found.endswith("+") else "")
