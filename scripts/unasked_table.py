"""The table of policies that look at no question, from records of `snapkv-local eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from table_parts import by_policy, table, where

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
    rows, sources = [], []
    for file in sorted(results.glob("eval-*-question-free*.json")):
        record = json.loads(file.read_text())
        rows += by_policy(record, COLUMNS, "replay", _text)
        sources.append(f"`results/{file.name}` ({where(record)})")
    if not rows:
        return "Policies that look at no question are not measured yet."
    head = ["model, task", "cases (documents)", "rows", *COLUMNS.values()]
    said = "Exact answers (95 % interval over documents), KL"
    return "\n".join([*table(head, rows), "", f"{said}; {', '.join(sources)}."])


def _text(row: dict[str, Any]) -> str:
    exact, kl = (row["scores"][name] for name in ("exact", "kl"))
    share, low, high = (f"{100 * value:.0f}" for value in exact)
    between = "" if low == high and share in ("0", "100") else f" ({low} to {high})"
    return f"{share} %{between}, {kl[0]:.2f}"
