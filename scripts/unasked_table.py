"""The table of policies that look at no question, from records of `snapkv-local eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from table_parts import former, table

COLUMNS = {
    "full": "all tokens",
    "snapkv": "default",
    "streaming": "StreamingLLM",
    "expected": "`expected`",
    "replay": "`replay`",
    "level:of=replay": "`level:of=replay`",
}


def unasked(results: Path) -> str:
    """Exact answers and KL to the full cache; a line for each task, length and budget."""
    rows, where = [], []
    for file in sorted(results.glob("eval-*-question-free*.json")):
        record = json.loads(file.read_text())
        rows += _rows(record)
        device = (record.get("device") or {}).get("name")
        machine = device or f"{record['machine']['cpu']}, {record['machine']['cores']} cores"
        commit = f"commit {record['commit'][:9]}{former(record)}"
        where.append(f"`results/{file.name}` ({machine}; {commit})")
    if not rows:
        return "Policies that look at no question are not measured yet."
    head = ["model, task", "cases (documents)", "rows", *COLUMNS.values()]
    return "\n".join([*table(head, rows), "", f"Exact answers, KL; {', '.join(where)}."])


def _rows(record: dict[str, Any]) -> list[list[str]]:
    summary = [row for row in record["summary"] if row["length"]]
    cells = {(r["task"], r["length"], r["budget"], r["policy"]): r for r in summary}
    rows = []
    for task, length, budget, policy in cells:
        if policy != "replay":
            continue
        found = [cells[task, length, None if name == "full" else budget, name] for name in COLUMNS]
        n = f"{found[0]['n_cases']} ({found[0]['n_documents']})"
        called = f"{record['model']['name']}, `{task}`, {length // 1024}K"
        rows.append([called, n, str(budget), *map(_text, found)])
    return rows


def _text(row: dict[str, Any]) -> str:
    exact, kl = (row["scores"][name][0] for name in ("exact", "kl"))
    return f"{100 * exact:.0f} %, {kl:.2f}"
