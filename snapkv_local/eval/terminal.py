"""A summary in a terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from snapkv_local.eval import show
from snapkv_local.units import size

Row = dict[str, Any]

SHOWN = ("exact", "kl")
COMPARED = ("exact", "kl")
CAPTION = (
    "KV: bytes kept of the prompt, mean. exact: all answer tokens are the most likely ones. KL to the full "
    "f16 cache, in nats; lower is better. Δ: from {against} at the same rows and type, in percentage points "
    "where it is of shares. Second lines: 95 % intervals over documents."
)
_STYLES = {"better": "green", "worse": "red", "": ""}


def tables(summary: list[Row], against: str) -> RenderableType:
    """All tasks together, and each task by its own if there are several."""
    shown: list[RenderableType] = []
    groups = show.groups(summary)
    for name, rows in list(groups.items())[:1]:
        shown += [_title(name, rows), _main(rows)]
    if len(groups) > 1:
        shown += [Text("By task: exact, and KL to full", style="bold"), _by_task(groups)]
    return Group(*shown, Text(CAPTION.format(against=against), style="dim"))


def _title(name: str, rows: list[Row]) -> Text:
    n_cases = max(row["n_cases"] for row in rows)
    n_documents = max(row["n_documents"] for row in rows)
    return Text(f"{name}: {n_cases} cases, {n_documents} documents", style="bold")


def _main(rows: list[Row]) -> Table:
    compared = [name for name in COMPARED if any(row["against"] for row in rows)]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("KV", justify="right", no_wrap=True)
    table.add_column("cache", min_width=10, overflow="fold")
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("type", no_wrap=True)
    for name in (*SHOWN, *(f"Δ {name}" for name in compared)):
        table.add_column(name.replace("kl", "KL"), justify="right", no_wrap=True)
    for row in rows:
        scores = row["scores"]
        cells: list[Text | str] = [
            size(row["bytes"]),
            show.policy(row),
            str(row["budget"] or "all"),
            row["kv_type"],
            *(_two(show.mean(n, scores[n]), show.between(n, scores[n])) for n in SHOWN),
        ]
        for name in compared:
            interval = row["against"][name] if row["against"] else [None, None, None]
            style = _STYLES[show.verdict(name, interval)]
            text = show.difference(name, interval)
            cells.append(_two(text, show.difference_between(name, interval), style))
        table.add_row(*cells)
    return table


def _two(first: str, second: str, style: str = "") -> Text:
    """Two lines, the second one dim."""
    return Text.assemble((first, style), *([("\n" + second, "dim")] if second else []))


def _by_task(groups: dict[str, list[Row]]) -> Table:
    names = list(groups)[1:]
    found = {name: {row["cell"]: row for row in rows} for name, rows in groups.items()}
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("cache", "rows", "type"):
        table.add_column(name, justify="right" if name == "rows" else "left")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for row in next(iter(groups.values())):
        cells = [show.policy(row), str(row["budget"] or "all"), row["kv_type"]]
        for name in names:
            there = found[name].get(row["cell"])
            cells.append(_short(there) if there else show.NONE)
        table.add_row(*cells)
    return table


def _short(row: Row) -> str:
    exact, kl = row["scores"]["exact"][0], row["scores"]["kl"][0]
    return f"{100 * exact:.0f}% {kl:.3f}"
