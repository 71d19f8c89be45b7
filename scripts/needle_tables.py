"""The needle model's tables, from records of `snapkv-local eval needle`: needle-depth-*.json in results/ of
its figure, needle-tasks-*.json of other tasks. All records of a table are of one set of cases.

They are apart from those of other models: its figures do not stand for a model that people chat with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from snapkv_local.eval import show
from snapkv_local.eval.joined import join
from snapkv_local.eval.summary import summarize
from snapkv_local.report.units import MIB
from table_parts import former, size, table

Row = dict[str, Any]


def by_length(results: Path) -> str:
    """Exact answers with intervals by policy and budget, and length, of the figure's cases."""
    return _exact(joined(results, "needle-depth-*.json"))


def by_task(results: Path) -> str:
    """A table as by_length() for each other task."""
    return _exact(joined(results, "needle-tasks-*.json"))


def _exact(record: Row | None) -> str:
    if record is None:
        return "The needle model: not measured yet."
    summary = [row for row in summarize(record, record["against"]) if row["length"] is not None]
    tasks = dict.fromkeys(row["task"] for row in summary)
    shown = [_table(task, [row for row in summary if row["task"] == task]) for task in tasks]
    made = (
        f"Measured with {record['device']['name']}, commit {record['commit'][:9]}{former(record)}."
    )
    return "\n\n".join([*shown, made])


def joined(results: Path, names: str) -> Row | None:
    """All records of such names as one; None if there is none."""
    files = sorted(results.glob(names))
    return join(files) if files else None


def _table(task: str, rows: list[Row]) -> str:
    lengths = sorted({row["length"] for row in rows})
    found = {(row["cell"], row["length"]): row for row in rows}
    cells = []
    for name in dict.fromkeys(row["cell"] for row in rows):
        at = [found.get((name, length)) for length in lengths]
        one = next(row for row in at if row is not None)
        longest = max((row for row in at if row is not None), key=lambda row: row["length"])
        told = [show.policy(one), str(one["budget"] or "all"), one["kv_type"]]
        cells.append([*told, size(longest["bytes"], MIB), *map(_share, at)])
    heads = ["", "rows", "type", "KV at most", *(f"{length:,}" for length in lengths)]
    n = {row["n_cases"] for row in rows}
    cases = f"{min(n)} to {max(n)}" if len(n) > 1 else f"{max(n)}"
    lines = [
        f"`{task}`, {cases} cases a length; 95 % intervals over documents.\n",
        *table(heads, cells),
    ]
    return "\n".join(lines)


def _share(row: Row | None) -> str:
    if row is None:
        return "-"
    interval = row["scores"]["exact"]
    between = show.between("exact", interval)
    return (
        f"{show.mean('exact', interval)} ({between})" if between else show.mean("exact", interval)
    )
