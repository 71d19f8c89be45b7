"""A summary in a terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from snapkv_local.eval import show
from snapkv_local.report.units import size

Row = dict[str, Any]

SHOWN = ("exact", "kl")
COMPARED = ("exact", "kl")
CAPTION = (
    "KV is the mean of the bytes that are kept of a prompt. exact is the share of answers of which all "
    "tokens are the most likely ones. KL is to the full f16 cache, in nats; lower is better. Δ is the "
    "difference from {against} at the same rows and type, in percentage points for shares. The second "
    "lines are 95 % intervals over documents."
)
FEW = 10
SIDE_BY_SIDE = 4  # columns of tasks that 80 characters hold
_STYLES = {"better": "green", "worse": "red", "": ""}


def tables(summary: list[Row], against: str) -> RenderableType:
    """All tasks together, and each task by its own if there are several."""
    shown: list[RenderableType] = []
    groups = show.groups(summary)
    for name, rows in list(groups.items())[:1]:
        shown += [_title(name, rows), _main(rows)]
    if len(groups) > 1:
        shown.append(Text("By task: exact, and KL to full", style="bold"))
        names = list(groups)[1:]
        for i in range(0, len(names), SIDE_BY_SIDE):
            shown.append(_by_task(groups, names[i : i + SIDE_BY_SIDE]))
    shown.append(Text(CAPTION.format(against=against), style="dim"))
    if summary and max(row["n_documents"] for row in summary) < FEW:
        shown.append(
            Text(
                f"There are fewer than {FEW} documents, so intervals are rough: take more --cases."
            )
        )
    return Group(*shown)


def _title(name: str, rows: list[Row]) -> Text:
    n_cases = max(row["n_cases"] for row in rows)
    n_documents = max(row["n_documents"] for row in rows)
    return Text(f"{name}: {n_cases} cases, {n_documents} documents", style="bold")


def _main(rows: list[Row]) -> Table:
    compared = [name for name in COMPARED if any(row["against"] for row in rows)]
    has_types = len({row["kv_type"] for row in rows}) > 1
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("KV", justify="right", no_wrap=True)
    table.add_column("cache", min_width=10, overflow="fold")
    table.add_column("rows", justify="right", no_wrap=True)
    if has_types:
        table.add_column("type", no_wrap=True)
    for name in (*SHOWN, *(f"Δ {name}" for name in compared)):
        table.add_column(name.replace("kl", "KL"), justify="right", no_wrap=True)
    for row in rows:
        scores = row["scores"]
        cells: list[Text | str] = [
            size(row["bytes"]),
            show.policy(row),
            str(row["budget"] or "all"),
            *([row["kv_type"]] if has_types else []),
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


def _by_task(groups: dict[str, list[Row]], names: list[str]) -> Table:
    """Some of the groups beside each other."""
    first = next(iter(groups.values()))
    found = {name: {row["cell"]: row for row in groups[name]} for name in names}
    has_types = len({row["kv_type"] for row in first}) > 1
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("cache", min_width=10, overflow="fold")
    table.add_column("rows", justify="right", no_wrap=True)
    if has_types:
        table.add_column("type", no_wrap=True)
    for name in names:
        # a narrow column, broken where a reader would break it
        table.add_column(name.replace("-", "-\n"), justify="right", overflow="fold")
    for row in first:
        cells = [show.policy(row), str(row["budget"] or "all")]
        cells += [row["kv_type"]] if has_types else []
        for name in names:
            there = found[name].get(row["cell"])
            cells.append(_short(there) if there else show.NONE)
        table.add_row(*cells)
    return table


def _short(row: Row) -> str:
    exact, kl = row["scores"]["exact"][0], row["scores"]["kl"][0]
    return f"{100 * exact:.0f}% {kl:.3f}"
