"""What all tables are made of."""

from __future__ import annotations

from snapkv_local.report.units import GIB


def size(value: float | None, unit: int) -> str:
    """Bytes in MiB or GiB; "-" for None."""
    return "-" if value is None else f"{value / unit:.1f} {'GiB' if unit == GIB else 'MiB'}"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table."""

    def line(cells: list[str]) -> str:
        return ("| " + " | ".join(cells) + " |").replace("|  |", "| |")

    return [line(head), "|" + "---|" * len(head), *map(line, rows)]
