"""The tables of answers and KL, from the records of `snapkv-local eval`.

A cell is "exact answers, KL to the full cache". What stands in a row of the short tables is of the
same prompts on the same device, of those with the most cases.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapkv_local.report.units import MIB
from table_parts import commit, size, table

Record = dict[str, Any]
Row = dict[str, Any]

PAPER = "snapkv-paper"
OURS = "snapkv"
WIDE = "snapkv-paper:kernel_size=21+aggregation=max+observation=16"

LAST = "snapkv:observation=16"

# of the short tables, and how they are called there; the default's place is before all
SHORT = {
    PAPER: "paper's form",
    WIDE: "21, max",
    LAST: "last 16",
    "value:kernel_size=21+self_weight=0.25+pooling=nosink+aggregation=max+observation=16": "`value`",
    "sentence:of=snapkv-paper:kernel_size=1+aggregation=max+observation=16": "`sentence`",
    "h2o": "H2O",
    "streaming": "StreamingLLM",
    "random": "random",
}
BUDGETS = (64, 128, 512)
TASKS = (
    "needle",
    "needles",
    "question-first",
    "question-after",
    "continue",
    "code",
    "keys",
    "trace",
    "count",
)
# they are continued, and nothing in them is a right answer
NO_ANSWER = ("continue", "code")


def default_policy(budget: int) -> str:
    """What the engine does without settings, as a policy; a test compares it with SnapKVConfig."""
    return OURS


def short(results: Path) -> str:
    """A table for each model and budget: the default beside the paper's form, rivals and others.

    The model with the most tasks comes first.
    """
    cells = list(_cells(results))
    tasks: dict[str, set[tuple[str, int]]] = {}
    for cell in cells:
        tasks.setdefault(cell.model, set()).add(cell.key)
    parts = [
        _short(cells, model, budget)
        for model in sorted(tasks, key=lambda model: -len(tasks[model]))
        for budget in BUDGETS
        if any(cell.model == model and _is_measured(cell, budget) for cell in cells)
    ]
    return "\n\n".join(parts) or "What compression costs in quality is not measured yet."


def by_bytes(results: Path) -> str:
    """A table for each model: quantized caches of all tokens and of kept rows, by their bytes."""
    cells = [cell for cell in _cells(results) if len(cell.record["settings"]["kv_types"]) > 1]
    models = dict.fromkeys(cell.model for cell in cells)
    parts = [_by_bytes([cell for cell in cells if cell.model == model]) for model in models]
    return "\n\n".join(parts) or "Quantized caches and kept rows are not measured yet."


def everything(results: Path) -> str:
    """A table for each record, task and length: all policies with their intervals."""
    parts = [_task(n, record, *key) for n, record in _records(results) for key in _keys(record)]
    return "\n\n".join(parts) or "What compression costs in quality is not measured yet."


@dataclass(frozen=True)
class _Cell:
    """A row of a record's summary."""

    record: Record
    row: Row

    @property
    def model(self) -> str:
        return str(self.record["model"]["name"])

    @property
    def key(self) -> tuple[str, int]:
        return self.row["task"], self.row["length"]

    @property
    def policy(self) -> str:
        return str(self.row["policy"])

    @functools.cached_property
    def prompts(self) -> tuple[str, frozenset[str]]:
        """The device, and digests of the task's cases: equal ones are the same tokens."""
        digests = frozenset(
            case["digest"]
            for case in self.record["cases"].values()
            if (case["task"], case["length"]) == self.key
        )
        return _device(self.record), digests

    def text(self) -> str:
        """Share of exact answers, if the task has any, and KL."""
        exact, kl = (self.row["scores"][name][0] for name in ("exact", "kl"))
        return f"{kl:.2f}" if self.row["task"] in NO_ANSWER else f"{100 * exact:.0f} %, {kl:.2f}"

    def marked(self) -> str:
        """Bold where it is better than the paper's form by more than the interval, † where worse."""
        against = self.row["against"]
        if against is None or against["policy"] != PAPER:
            return self.text()
        (_, exact_low, exact_high), (_, kl_low, kl_high) = against["exact"], against["kl"]
        if None in (exact_low, kl_low):
            return self.text()
        better = exact_low > 0 or kl_high < 0
        worse = exact_high < 0 or kl_low > 0
        return (f"**{self.text()}**" if better else self.text()) + (" †" if worse else "")


def _records(results: Path) -> list[tuple[str, Record]]:
    return [
        (file.stem, json.loads(file.read_text())) for file in sorted(results.glob("eval-*.json"))
    ]


def _cells(results: Path) -> Iterable[_Cell]:
    for name, record in _records(results):
        if "question-free" in name:  # unasked_table.py has those
            continue
        for row in record["summary"]:
            if row["length"]:  # not those of all tasks together
                yield _Cell(record, row)


def _keys(record: Record) -> list[tuple[str, int]]:
    return list(dict.fromkeys((r["task"], r["length"]) for r in record["summary"] if r["length"]))


def _order(key: tuple[str, int]) -> tuple[int, int]:
    return TASKS.index(key[0]), key[1]


def _short(cells: Sequence[_Cell], model: str, budget: int) -> str:
    ours = default_policy(budget)
    # of each task and length: the prompts that the default was measured on, or else the paper's form;
    # the most of them
    measured = [c for c in cells if (c.model, c.row["kv_type"]) == (model, "f16")]
    best: dict[tuple[str, int], _Cell] = {}
    ranks: dict[tuple[str, int], tuple[bool, int, int]] = {}
    for cell in measured:
        if not _is_measured(cell, budget):
            continue
        policies = {c.policy for c in measured if c.prompts == cell.prompts}
        rank = (
            cell.policy == ours,
            cell.row["n_cases"],
            len(policies & SHORT.keys()),
        )
        if cell.key not in best or rank > ranks[cell.key]:
            best[cell.key], ranks[cell.key] = cell, rank
    others = [policy for policy in SHORT if policy != ours]
    found = {}
    for key in sorted(best, key=_order):
        found[key] = {
            cell.policy: cell
            for cell in measured
            if cell.prompts == best[key].prompts and cell.row["budget"] in (budget, None)
        }
    shown = [policy for policy in others if any(policy in row for row in found.values())]
    rows = []
    for (task, length), by_policy in found.items():
        row = by_policy["full"].row
        texts = [cell.text() if (cell := by_policy.get(policy)) else "-" for policy in shown]
        default = by_policy.get(ours)
        rows.append(
            [
                f"`{task}`, {length // 1024}K",
                f"{row['n_cases']} ({row['n_documents']})",
                by_policy["full"].text(),
                default.marked() if default else "-",
                *texts,
            ]
        )
    head = ["", "cases (documents)", "all tokens", "default", *(SHORT[policy] for policy in shown)]
    kept = size(next(iter(best.values())).row["bytes"], MIB)
    return "\n".join(
        [f"**{model}, {budget} rows** ({kept}), default: `{ours}`\n", *table(head, rows)]
    )


def _by_bytes(cells: Sequence[_Cell]) -> str:
    keys = sorted({cell.key for cell in cells}, key=_order)
    lengths = sorted({length for _, length in keys})
    found = {(*_kept(cell), cell.key): cell for cell in cells}
    kinds = list(dict.fromkeys(_kept(cell) for cell in cells))

    def bytes_at(kind: tuple[str, int | None, str], length: int) -> float | None:
        return next(
            (
                cell.row["bytes"]
                for cell in cells
                if _kept(cell) == kind and cell.row["length"] == length
            ),
            None,
        )

    rows = []
    for kind in sorted(
        kinds, key=lambda kind: bytes_at(kind, lengths[0]) or bytes_at(kind, lengths[-1]) or 0
    ):
        policy, budget, kv_type = kind
        if policy == "full":
            name = f"all tokens, {kv_type}"
        else:
            is_default = policy == default_policy(budget or 0)
            called = "default" if is_default else SHORT.get(policy, f"`{policy}`")
            name = f"{called}, {budget} rows, {kv_type}"
        sizes = [size(bytes_at(kind, length), MIB) for length in lengths]
        texts = [cell.text() if (cell := found.get((*kind, key))) else "-" for key in keys]
        rows.append([name, *sizes, *texts])
    head = ["", *(f"bytes at {length // 1024}K" for length in lengths)]
    for task, length in keys:
        n = next(cell.row["n_cases"] for cell in cells if cell.key == (task, length))
        head.append(f"`{task}`, {length // 1024}K ({n} cases)")
    return "\n".join([f"**{cells[0].model}**\n", *table(head, rows)])


def _is_measured(cell: _Cell, budget: int) -> bool:
    """Is it of the default, or the paper's form?"""
    policy, at = cell.policy, cell.row["budget"]
    return at == budget and policy in (default_policy(budget), PAPER)


def _kept(cell: _Cell) -> tuple[str, int | None, str]:
    return cell.policy, cell.row["budget"], cell.row["kv_type"]


def _task(name: str, record: Record, task: str, length: int) -> str:
    rows = [r for r in record["summary"] if (r["task"], r["length"]) == (task, length)]
    budgets = sorted({row["budget"] for row in rows if row["budget"]})
    types = list(dict.fromkeys(row["kv_type"] for row in rows))
    by_cell = {(row["policy"], row["kv_type"], row["budget"]): row for row in rows}
    answers = any(row["scores"]["exact"][0] > 0 for row in rows)

    def cell(row: Record | None) -> str:
        if row is None:
            return "-"
        (mean, low, high), kl = row["scores"]["exact"], row["scores"]["kl"][0]
        exact = f"{100 * mean:.0f} % ({100 * low:.0f} to {100 * high:.0f}), " if answers else ""
        return f"{exact}{kl:.2f}"

    def label(policy: str, kv_type: str) -> str:
        return f"`{policy}`" + (f", {kv_type}" if len(types) > 1 else "")

    cells, full = [], []
    for policy, kv_type in dict.fromkeys((row["policy"], row["kv_type"]) for row in rows):
        found = [by_cell.get((policy, kv_type, budget)) for budget in budgets]
        if policy == "full":
            row = by_cell[policy, kv_type, None]
            full.append(f"{kv_type} {cell(row)} in {size(row['bytes'], MIB)}")
        else:
            cells.append([label(policy, kv_type), *map(cell, found)])
    first = rows[0]
    sizes = {row["budget"]: row["bytes"] for row in rows if row["kv_type"] == types[0]}
    heads = [f"budget {budget} ({size(sizes[budget], MIB)})" for budget in budgets]
    says = "exact answers (95 % interval over documents), KL" if answers else "KL"
    return "\n".join(
        [
            f"**{task}, {length:,} tokens**: {says}. {record['model']['name']}, "
            f"{first['n_cases']} cases in {first['n_documents']} documents, "
            f"{record['settings']['window_size']} last rows always stay; `results/{name}.json`. "
            f"All tokens: {'; '.join(full)}. {_where(record)}\n",
            *table(["", *heads], cells),
        ]
    )


def _device(record: Record) -> str:
    device: str | None = (record.get("device") or {}).get("name")
    return device or f"{record['machine']['cpu']}, {record['machine']['cores']} cores"


def _where(record: Record) -> str:
    return f"({_device(record)}, commit {commit(record)}.)"
