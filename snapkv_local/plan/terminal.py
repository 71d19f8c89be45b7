"""A plan on a terminal: what each part takes, what would make it fit, and what was measured beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from snapkv_local.report.units import size

if TYPE_CHECKING:
    from snapkv_local.plan.fit import Change, Task
    from snapkv_local.plan.measure import Measurement
    from snapkv_local.plan.memory import Estimate

_LABELS = {
    "weights": "weights",
    "kv": "KV cache",
    "recurrent": "recurrent state",
    "looks": "states before drafts",
    "kv_group": "KV of a layer group",
    "hidden": "hidden state",
    "mask": "mask",
    "weights_lent": "lent weights",
    "compute": "compute buffer",
    "vault": "vault",
    "recall": "index and votes of recall",
    "states": "kept states",
    "heads": "prediction heads",
    "draft": "draft model",
    "process": "driver's context",
}


def parts_table(
    task: Task, estimates: list[Estimate], largest: dict[str, int], by_memory: dict[str, int]
) -> Table:
    """One column a way of running."""
    table = Table(
        "", *(estimate.name for estimate in estimates), box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for name, label in _LABELS.items():
        parts = [estimate.parts.get(name) for estimate in estimates]
        if any(part and part.main for part in parts):
            if name == "process" and not task.place.gpu:
                label = "process"
            cells = (size(part.main) if part and part.main else "-" for part in parts)
            table.add_row(label, *cells)
    table.add_section()
    table.add_row("peak", *(size(e.peak) for e in estimates))
    table.add_row("fits", *("yes" if task.fits(e) else "no" for e in estimates))
    if task.place.gpu:
        table.add_row("host memory", *(size(e.peak_host) for e in estimates))
    table.add_row("layers at once", *(str(e.layer_group or "-") for e in estimates))
    if task.place.gpu:
        places = ("host" if e.hidden_host else "device" for e in estimates)
        shown = (p if e.layer_group else "-" for p, e in zip(places, estimates, strict=True))
        table.add_row("hidden state on", *shown)
    if any(e.selection for e in estimates):
        chosen = [(e, e.selection) for e in estimates]
        table.add_row(
            "rows of later layers",
            *(f"{s.n_rows:,} after {s.n_layer}" if s else "-" for _, s in chosen),
        )
        works = (f"{s.work:.0%}" if s else "100%" if e.layer_group else "-" for e, s in chosen)
        table.add_row("layers' work, at best", *works)
    table.add_section()
    table.add_row("largest prompt", *map(tokens, largest.values()))
    if largest != by_memory:
        table.add_row("by memory alone", *map(tokens, by_memory.values()))
    if task.place.gpu:
        ways = zip(task.ways().values(), largest.values(), strict=True)
        hosts = (size(way(n).peak_host) if n else "-" for way, n in ways)
        table.add_row("host memory for it", *hosts)
    return table


def tokens(n: int) -> str:
    """A number of tokens, short."""
    return f"{n / 1e6:.1f}M" if n >= 1_000_000 else f"{n:,}"


def advice(task: Task, ours: Estimate, cures: list[Change], largest: int) -> list[str]:
    """What to change, in lines."""
    lines = [
        f"\nIt does not fit: it takes {size(ours.peak - task.memory)} too much. Each of these options "
        "makes it fit:"
    ]
    lines += [
        f"  {change.option}  ({size(change.peak)}{'; ' + change.note if change.note else ''})"
        for change in cures
    ]
    if largest:
        lines.append(f"  --ctx {largest + task.config.decode_cells}  (a shorter prompt)")
    if len(lines) == 1:
        lines = [
            "\nIt does not fit, and no setting changes that: take a model of fewer weights or bits, "
            "or more memory."
        ]
    return lines


def measured_table(result: Measurement) -> Table:
    """Each part as it was predicted and as it was measured."""
    table = Table("", "predicted", "measured", "error", "")
    for column in table.columns[1:]:
        column.justify = "right"
    for c in result.comparisons:
        mark = "off by more than 5 %" if c.misses else ""
        label = "process" if c.part == "process" else _LABELS.get(c.part, c.part)
        table.add_row(label, size(c.predicted), size(c.measured), f"{c.error:+.1%}", mark)
    return table
