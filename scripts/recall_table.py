"""Tables of recall while answering: what it gives, and what it costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from table_parts import by_policy, table, where

COLUMNS = {
    "full": "full cache",
    "snapkv": "without recall",
    "recall": "with recall",
    "recall:delay=7": "rows 7 tokens later, as beside a GPU",
    "recall:asked=384": "with recall, at least 384 rows asked",
}
FORMS = {"mean": "mean", "bound": "bound", "midway": "midway"}


def answers(results: Path) -> str:
    """Exact answers, right tokens and KL to the full cache, from records of `snapkv-local eval`."""
    rows, sources = [], []
    for file in sorted(results.glob("recall-*-*k.json")):
        record = json.loads(file.read_text())
        rows += by_policy(record, COLUMNS, "recall", _text)
        sources.append(f"`results/{file.name}` ({where(record)})")
    if not rows:
        return "Recall is not measured yet."
    head = ["model, task", "cases (documents)", "rows", *COLUMNS.values()]
    says = "Exact answers, right tokens, KL to the full cache"
    return "\n".join([*table(head, rows), "", f"{says}; {', '.join(sources)}."])


def cost(results: Path) -> str:
    """Seconds of a recall, and the speed with it, from records of `measure/recall.py`."""
    rows, sources = [], []
    for file in sorted(results.glob("recall-cost-*.json")):
        record = json.loads(file.read_text())
        sources.append(f"`results/{file.name}` ({where(record)}, {record['threads']} threads)")
        for run in record["runs"]:
            rows.append(
                [
                    f"{record['model'].removesuffix('.gguf')}, {run['n_prompt']:,}",
                    str(run["budget"]),
                    str(run["every"]),
                    f"{1000 * run['seconds_token']:.1f} ms",
                    f"{1000 * run['seconds_rank']:.0f} ms",
                    f"{1000 * run['seconds_wait']:.0f} ms",
                    f"{1000 * run['seconds_copy']:.1f} ms",
                    f"{run['rows']:,.0f}",
                    f"{run['bytes'] / 2**20:.2f} MiB",
                    f"{100 * run['speed']:.0f} %",
                    f"{100 * run['speed_cpu']:.0f} %",
                ]
            )
    if not rows:
        return "What a recall costs is not measured yet."
    head = ["model, prompt tokens", "rows kept", "`recall_every`", "a token", "a ranking"]
    head += ["waited for", "copying", "rows replaced", "bytes", "speed", "speed by CPU time"]
    says = "Medians; speed with recall as a share of that without, of the same tokens"
    return "\n".join([*table(head, rows), "", f"{says}; {', '.join(sources)}."])


def index(results: Path) -> str:
    """What recalls find by the index, from records of `measure/recall_index.py`."""
    rows, sources = [], []
    for file in sorted(results.glob("recall-index-*.json")):
        record = json.loads(file.read_text())
        sources.append(f"`results/{file.name}` ({where(record)})")
        forms = {(r["budget"], r["times"], r["form"]): r for r in record["forms"]}
        for run in record["engine"]:
            budget, times = run["budget"], run["times"]
            shares = [forms[budget, times, form] for form in FORMS]
            rows.append(
                [
                    f"{record['model'].removesuffix('.gguf')}, {record['n_prompt']:,}",
                    str(budget),
                    str(times),
                    f"{100 * run['came']:.0f} % of {run['n_came']:,}",
                    *(f"{100 * r['rows']:.0f} %, {100 * r['worth']:.0f} %" for r in shares),
                ]
            )
    if not rows:
        return "What recalls find by the index is not measured yet."
    head = ["model, prompt tokens", "rows kept", "asked for each", "rows that came in"]
    head += [f"found by {name}" for name in FORMS.values()]
    says = (
        "Rows asked for each that is kept; of the rows that a recall brings in among all, those that come "
        "in by the index; of the rows with the most votes, those that an index of a form finds, and their "
        "share of these rows' votes"
    )
    return "\n".join([*table(head, rows), "", f"{says}; {', '.join(sources)}."])


def _text(row: dict[str, Any]) -> str:
    exact, right, kl = (row["scores"][name][0] for name in ("exact", "accuracy", "kl"))
    return f"{100 * exact:.0f} %, {100 * right:.0f} %, {kl:.2f}"
