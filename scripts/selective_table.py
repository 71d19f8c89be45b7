"""Tables of selective prefills: seconds to the first token, and answers, beside exact prefills."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from snapkv_local.eval import show
from table_parts import commit, table

POLICIES = ("full", "snapkv", "selective")


def speed(results: Path) -> str:
    """Seconds to the first token by the prompt's length, from selective-gpu-*.json."""
    found = [
        _speed(json.loads(f.read_text())) for f in sorted(results.glob("selective-gpu-*.json"))
    ]
    return "\n\n".join(found) or "The speed of selective prefills is not measured yet."


def answers(results: Path) -> str:
    """Exact answers and KL to the full cache, from records of `snapkv-local eval`."""
    rows, where = [], []
    for file in sorted(results.glob("selective-*-*k.json")):
        record = json.loads(file.read_text())
        model = record["model"]["name"]
        cells = {(r["task"], r["length"], r["policy"]): r for r in record["summary"]}
        for task, length in dict.fromkeys(
            (r["task"], r["length"]) for r in record["summary"] if r["length"]
        ):
            some = cells[task, length, "snapkv"]
            row = [f"{model}, `{task}`, {length:,}", str(some["n_cases"]), str(some["budget"])]
            rows.append([*row, *(_score(cells[task, length, policy]) for policy in POLICIES)])
        where.append(f"`results/{file.name}` ({record['device']['name']}, commit {commit(record)})")
    if not rows:
        return "Answers after selective prefills are not measured yet."
    head = ["model, task, tokens", "cases", "rows", "full cache", "exact prefill", "selective"]
    said = "Exact answers, KL to the full cache"
    return "\n".join([*table(head, rows), "", f"{said}; {', '.join(where)}."])


def _score(row: dict[str, Any]) -> str:
    exact, kl = row["scores"]["exact"], row["scores"]["kl"]
    return f"{show.mean('exact', exact)}, {show.mean('kl', kl)}"


def _speed(record: dict[str, Any]) -> str:
    runs = {(run["n_prompt"], run["way"]): run for run in record["runs"]}
    rows = []
    for n in sorted({n for n, _ in runs}):
        plain, exact, ours = (runs[n, way] for way in ("plain", "exact", "selective"))
        stats = ours["stats"]
        rows.append(
            [
                f"{n:,}",
                *(f"{run['seconds']:.1f} s" for run in (plain, exact, ours)),
                f"{plain['seconds'] / ours['seconds']:.2f}",
                f"{stats['n_layer_all']}",
                f"{stats['n_selected']:,}",
                f"{stats['seconds_select']:.1f} s",
            ]
        )
    head = ["prompt, tokens", "llama.cpp", "exact", "selective", "times as fast as llama.cpp"]
    head += ["layers with all rows", "rows in the others", "of it looking ahead"]
    said = f"{record['model']}, {record['device']}, one run each, commit {commit(record)}"
    return "\n".join([*table(head, rows), "", f"Seconds to the first token; {said}."])
