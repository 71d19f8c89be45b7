"""The table of the default before, pooling without the largest vote, against today's: records in
results/former/ and those of the same name in results/, prompt by prompt.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quality_tables import LAST, NO_ANSWER, OURS
from snapkv_local.eval import show
from snapkv_local.eval.cell import Cell
from snapkv_local.eval.summary import summarize
from table_parts import table

Record = dict[str, Any]
Pair = tuple[str, Record, Record]  # a model's name, a row, and that of the default before

FORMER = "former"
# its two halves, which the records name: the question's words vote where the prompt ends with a question,
# which in all of these tasks is in the window, else the last tokens
ASKED = "question:kernel_size=21+self_weight=0.25+pooling=trim+aggregation=max"
ASKS = ("needle", "needles", "keys", "trace", "count")
GATE = (128, 512)  # rows at which it was said beforehand that today's default must not be worse


def former(results: Path) -> str:
    """How often today's default is better and worse than the one before, and where."""
    rows = []
    for file in sorted((results / FORMER).glob("eval-*.json")):
        old, new = (json.loads(path.read_text()) for path in (file, results / file.name))
        rows += [(new["model"]["name"], *pair) for pair in _compared(old, new)]
    if not rows:
        return "The default before and today's: not measured yet."
    fixed = [row for _, row, _ in rows if row["budget"] in GATE]
    told = (
        f"In {len(fixed)} comparisons at {' and '.join(map(str, GATE))} rows, which were fixed beforehand, "
        f"{_counts(fixed)}. In all {len(rows)}, {_counts([row for _, row, _ in rows])}. "
        "These are beyond the interval:"
    )
    return "\n".join([f"{told}\n", *_table(rows)])


def again(results: Path) -> str:
    """The same of other prompts, with both measured from one prefill on one device."""
    rows = []
    for file in sorted((results / FORMER).glob("again-*.json")):
        record = json.loads(file.read_text())
        found = [row for row in summarize(record, OURS) if row["length"]]
        was = {row["budget"]: row for row in found if row["policy"] == OURS}
        rows += [
            (record["model"]["name"], row, was[row["budget"]]) for row in found if row["against"]
        ]
    if not rows:
        return "The default before and today's, of other prompts: not measured yet."
    counts = _counts([row for _, row, _ in rows])
    told = f"In {len(rows)} comparisons, {counts}. These are beyond the interval:"
    return "\n".join([f"{told}\n", *_table(rows)])


def _table(rows: list[Pair]) -> list[str]:
    """Those that differ by more than the interval."""
    differ = [
        _cells(*pair)
        for pair in rows
        if any(show.verdict(name, pair[1]["against"][name]) for name in ("exact", "kl"))
    ]
    head = [
        "",
        "task",
        "rows",
        "answers before",
        "now",
        "KL before",
        "now",
        "KL changed by",
        "now it is",
    ]
    return table(head, differ)


def _counts(rows: list[Record]) -> str:
    """In words."""
    n = {
        (name, verdict): sum(show.verdict(name, row["against"][name]) == verdict for row in rows)
        for name in ("exact", "kl")
        for verdict in ("better", "worse")
    }
    return (
        f"today's default gives more right answers in {n['exact', 'better']} and fewer in "
        f"{n['exact', 'worse']}, and is nearer to the full cache in {n['kl', 'better']} and farther from it "
        f"in {n['kl', 'worse']}"
    )


def _cells(model: str, row: Record, was: Record) -> list[str]:
    kl = row["against"]["kl"]
    verdicts = {show.verdict("exact", row["against"]["exact"]), show.verdict("kl", kl)} - {""}
    answers = ["-", "-"]
    if row["task"] not in NO_ANSWER:
        answers = [show.mean("exact", r["scores"]["exact"]) for r in (was, row)]
    return [
        model,
        f"`{row['task']}`, {row['length'] // 1024}K ({row['n_cases']} cases)",
        str(row["budget"]),
        *answers,
        *(show.mean("kl", r["scores"]["kl"]) for r in (was, row)),
        f"{kl[0]:+.3f} ({kl[1]:+.4f} to {kl[2]:+.4f})",
        " and ".join(sorted(verdicts)),
    ]


def _compared(old: Record, new: Record) -> list[tuple[Record, Record]]:
    """Rows of today's default with the difference from the one before, and rows of that."""
    budgets = dict.fromkeys(c["budget"] for c in new["cells"].values() if c["policy"] == OURS)
    cells = [Cell(policy, b, "f16") for policy in (OURS, FORMER) for b in budgets]
    cases = {}
    for name, case in new["cases"].items():
        was = old["cases"].get(name)
        if was is None or was["digest"] != case["digest"]:
            continue
        half = ASKED if case["task"] in ASKS else LAST
        scores, held = {}, {}
        for cell in cells:
            of, policy = (case, OURS) if cell.policy == OURS else (was, half)
            key = Cell(policy, cell.budget, "f16").name
            if key in of["scores"]:
                scores[cell.name], held[cell.name] = of["scores"][key], of["bytes"][key]
        cases[name] = {**case, "scores": scores, "bytes": held}
    data = {"cases": cases, "cells": {cell.name: cell.to_dict() for cell in cells}}
    rows = [row for row in summarize(data, FORMER) if row["length"]]
    by_cell = {(r["task"], r["length"], r["policy"], r["budget"]): r for r in rows}
    return [
        (row, by_cell[row["task"], row["length"], FORMER, row["budget"]])
        for row in rows
        if row["against"] is not None
    ]
