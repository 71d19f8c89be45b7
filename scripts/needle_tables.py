"""The needle model's tables, from records of `snapkv-local eval needle`: needle-depth-*.json in results/ of
its figure, needle-tasks-*.json of other tasks, needle-h2o-*.json of H2O, which is slow. All records of a
table are of one set of cases.

They are apart from those of other models: its figures do not stand for a model that people chat with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from snapkv_local.eval import show
from snapkv_local.eval.cell import REFERENCE, Cell
from snapkv_local.eval.joined import join
from snapkv_local.eval.summary import summarize
from snapkv_local.report.units import MIB
from table_parts import commit, size, table

Row = dict[str, Any]

DEFAULT = "snapkv"


def by_length(results: Path) -> str:
    """Exact answers with intervals by policy and budget, and length, of the figure's cases."""
    return _exact(joined(results, "needle-depth-*.json"))


def share(results: Path) -> str:
    """By length, the right answers of the default with its fewest rows, beside the full cache's."""
    record = joined(results, "needle-depth-*.json")
    if record is None:
        return "The needle model: not measured yet."
    n_rows = min(c["budget"] for c in record["cells"].values() if c["policy"] == DEFAULT)
    name = Cell(DEFAULT, n_rows, "f16").name
    pairs: dict[
        int, list[tuple[bool, bool]]
    ] = {}  # is it right with the full cache, with the rows?
    for case in record["cases"].values():
        if name in case["scores"]:
            right = [case["scores"][cell]["exact"] == 1 for cell in (REFERENCE.name, name)]
            pairs.setdefault(case["length"], []).append((right[0], right[1]))
    lines = []
    for length, at in sorted(pairs.items()):
        full, few = sum(a for a, _ in at), sum(b for _, b in at)
        both = sum(a and b for a, b in at)
        shares = [f"{of / full:.0%}" if full else "-" for of in (few, both)]
        lines.append([f"{length:,}", str(len(at)), str(full), str(few), *shares])
    head = ["tokens", "cases", "full cache right", f"{n_rows} rows right", "share"]
    return "\n".join(
        [
            f"Right answers of the default with {n_rows} rows and of the full cache. The last column counts "
            "only what is right with the full cache.\n",
            *table([*head, "of those"], lines),
        ]
    )


def by_task(results: Path) -> str:
    """A table as by_length() for each other task."""
    return _exact(joined(results, "needle-tasks-*.json"))


def h2o(results: Path) -> str:
    """A table as by_length() of shorter prompts, with H2O."""
    return _exact(joined(results, "needle-h2o-*.json"))


def rivals(results: Path) -> str:
    """Where StreamingLLM, the paper's form or a full cache in fewer bits gives more right answers than the
    default with the same rows, or the full cache with any rows, by more than the interval.
    """
    found = [joined(results, f"needle-{kind}-*.json") for kind in ("depth", "tasks")]
    records = [record for record in found if record is not None]
    if not records:
        return "The needle model: not measured yet."
    won, n, n_lost = [], 0, 0
    for record in records:
        for row in summarize(_with_full(record), DEFAULT):
            if row["length"] is None or row["against"] is None or _rival(row["policy"]) is None:
                continue
            n += 1
            verdict = show.verdict("exact", row["against"]["exact"])
            n_lost += verdict == "worse"
            if verdict == "better":
                won.append(_won(row))
    told = (
        f"In {n:,} comparisons of StreamingLLM, the paper's form and a full cache in q4_0 with the default, "
        f"case by case, they give fewer right answers in {n_lost:,} by more than the 95 % interval, and more "
        f"in {len(won):,}"
    )
    if not won:
        return f"{told}."
    head = [
        "",
        "task",
        "tokens",
        "rows of the default",
        "right answers",
        "more than the default by",
    ]
    return "\n".join([f"{told}:\n", *table(head, won)])


def _rival(policy: str) -> str | None:
    """How a policy that the default is compared with is called; None for others."""
    if policy.startswith("full "):
        return policy.replace("full ", "full cache, ")
    return {"streaming": "StreamingLLM", "snapkv-paper": "paper's form"}.get(policy)


def _with_full(record: Row) -> Row:
    """The record, with full caches in fewer bits as policies of each budget, to be compared."""
    cells = dict(record["cells"])
    budgets = sorted({cell["budget"] for cell in cells.values() if cell["policy"] == DEFAULT})
    cases = {
        name: {**case, "scores": dict(case["scores"])} for name, case in record["cases"].items()
    }
    for name, cell in record["cells"].items():
        if cell["policy"] != "full" or cell["kv_type"] == "f16":
            continue
        for budget in budgets:
            policy = f"full {cell['kv_type']}"
            beside = f"{policy}/{budget}/f16"
            cells[beside] = {"policy": policy, "budget": budget, "kv_type": "f16"}
            for case in cases.values():
                if name in case["scores"]:
                    case["scores"][beside] = case["scores"][name]
                    case["bytes"] = {**case["bytes"], beside: case["bytes"][name]}
    return {**record, "cells": cells, "cases": cases}


def _won(row: Row) -> list[str]:
    difference = row["against"]["exact"]
    return [
        f"{_rival(row['policy'])}",
        f"`{row['task']}`",
        f"{row['length']:,}",
        str(row["budget"]),
        show.mean("exact", row["scores"]["exact"]),
        f"{show.difference('exact', difference)} ({show.difference_between('exact', difference)})",
    ]


def _exact(record: Row | None) -> str:
    if record is None:
        return "The needle model: not measured yet."
    summary = [row for row in summarize(record, record["against"]) if row["length"] is not None]
    tasks = dict.fromkeys(row["task"] for row in summary)
    shown = [_table(task, [row for row in summary if row["task"] == task]) for task in tasks]
    made = f"Measured with {record['device']['name']}, commit {commit(record)}."
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
