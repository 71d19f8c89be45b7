"""Tables of refitted values, from records of `measure/refit.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from table_parts import table, where

COLUMNS = {
    "window-16/0.1": "last 16 queries",
    "window-16/1/by-vote": "the same, by vote",
    "prompt-1024/0.1": "1,024 queries",
    "prompt-1024/1/by-vote": "the same, by vote",
    "merge": "merged",
    "answer/0.01": "the answer's own",
}
ROWS = 128  # of the table of errors
DOCUMENTS = 6  # fewer give intervals that say too much


def decoded(results: Path) -> str:
    """KL to the full cache and exact answers with values as they are, and as each variant changes them."""
    rows, sources = [], []
    for file, record in _records(results):
        sources.append(f"`{file.name}` ({where(record)})")
        for key, found in _groups(record).items():
            task, length, budget = key
            plain = found["none"]
            called = f"{_model(record)}, `{task}`, {length // 1024}K ({plain['n_cases']}), {budget}"
            cells = [f"{_exact(plain)}{plain['kl']:.3f}"]
            cells += [_kl(found[name]) for name in COLUMNS]
            rows.append([called, *cells])
    if not rows:
        return "Refitted values are not measured yet."
    head = ["model, task (cases), rows", "as they are", *COLUMNS.values()]
    says = (
        "Exact answers (but for `continue`), KL to the full cache; **bold** where the 95 % interval of the "
        f"difference in KL is below zero, *italic* where it is above, of {DOCUMENTS} documents or more"
    )
    return "\n".join([*table(head, rows), "", f"{says}; `results/`: {', '.join(sources)}."])


def errors(results: Path) -> str:
    """By how much the error of held-out attention outputs changes, of all variants, with ROWS rows."""
    found = {
        f"{_model(record)}, `{task}`": by_name
        for _, record in _records(results)
        for (task, _, budget), by_name in _groups(record).items()
        if budget == ROWS
    }
    if not found:
        return "Refitted values are not measured yet."
    rows = [["error as it is", *(f"{by_name['none']['error']:.3f}" for by_name in found.values())]]
    for name in next(iter(found.values())):
        if name != "none":
            rows.append([f"`{name}`", *(_percent(by_name[name]) for by_name in found.values())])
    return "\n".join(table([f"{ROWS} rows", *found], rows))


def _records(results: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for file in sorted(results.glob("refit-*.json")):
        yield file, json.loads(file.read_text())


def _groups(record: dict[str, Any]) -> dict[tuple[str, int, int], dict[str, dict[str, Any]]]:
    """Rows of the summary: by task, length and budget, then by variant."""
    found: dict[tuple[str, int, int], dict[str, dict[str, Any]]] = {}
    for row in record["summary"]:
        key = row["task"], row["length"], row["budget"]
        found.setdefault(key, {})[row["variant"]] = row
    return found


def _model(record: dict[str, Any]) -> str:
    name: str = record["model"]
    return "-".join(name.removesuffix(".gguf").split("-")[:2])


def _exact(row: dict[str, Any]) -> str:
    return "" if row["task"] == "continue" else f"{100 * row['exact']:.0f} %, "


def _kl(row: dict[str, Any]) -> str:
    mark = _mark(row, "kl_change")
    return f"{_exact(row)}{mark}{row['kl']:.3f}{mark}"


def _percent(row: dict[str, Any]) -> str:
    mark = _mark(row, "error_change")
    return f"{mark}{100 * row['error_change'][0]:+.0f} %{mark}"


def _mark(row: dict[str, Any], change: str) -> str:
    _, low, high = row[change]
    if row["n_documents"] < DOCUMENTS:
        return ""
    return "**" if high < 0 else "*" if low > 0 else ""
