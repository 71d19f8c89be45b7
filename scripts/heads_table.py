"""The table of rows that a layer's KV heads choose together, from records of `snapkv-local eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from table_parts import table, where

# of a policy, what its KV heads choose together; as columns
PAIRS = {
    "default": ("snapkv", "joint"),
    "paper's form": ("snapkv-paper", "joint:of=snapkv-paper"),
}


def heads(results: Path) -> str:
    """Exact answers and KL to the full cache: each KV head by itself, and all of a layer together."""
    files = sorted(results.glob("heads-*.json"))
    parts = [_record(file.name, json.loads(file.read_text())) for file in files]
    return "\n\n".join(parts) or "What heads lose that choose together is not measured yet."


def _record(name: str, record: dict[str, Any]) -> str:
    rows = []
    cells = {(r["task"], r["length"], r["budget"], r["policy"]): r for r in record["summary"]}
    for task, length, budget, policy in cells:
        if not length or policy != "snapkv":
            continue
        found = [cells[task, length, budget, name] for pair in PAIRS.values() for name in pair]
        n = found[0]["n_cases"]
        rows.append(
            [f"`{task}`, {length // 1024}K ({n} cases)", str(budget), *map(_text, found)],
        )
    head = ["", "rows"]
    head += [f"{called}, {by}" for called in PAIRS for by in ("each head", "all together")]
    of = f"**{record['model']['name']}**, `results/{name}` ({where(record)})"
    return "\n".join([f"{of}\n", *table(head, rows)])


def _text(row: dict[str, Any]) -> str:
    exact, kl = (row["scores"][name][0] for name in ("exact", "kl"))
    return f"{kl:.3f}" if row["task"] in ("continue", "code") else f"{100 * exact:.0f} %, {kl:.3f}"
