"""Records side by side in a terminal."""

from __future__ import annotations

from itertools import groupby

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from snapkv_local.compare import words
from snapkv_local.compare.fits import Fit, sizes
from snapkv_local.compare.reader import Record, models


def cases_table(records: list[Record]) -> RenderableType:
    """A table for each model, with its machines one under the other."""
    shown: list[RenderableType] = []
    for title, sides in models(records):
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        if len(sides) > 1:
            table.add_column("machine")
        for i, name in enumerate(words.HEAD):
            table.add_column(name, justify="left" if i == 1 else "right", overflow="fold")
        for record, cases in sides:
            for i, case in enumerate(cases):
                machine = [record.device if i == 0 else ""] if len(sides) > 1 else []
                table.add_row(*machine, *words.row(case, record))
            table.add_section()
        on = "" if len(sides) > 1 else f" on {sides[0][0].device}"
        shown += [Text(title + on, style="bold"), table]
    shown.append(Text(words.CAPTION, style="dim"))
    for record in records:
        shown.append(Text(f"{record.source}: {record.device} · {words.describe(record)}"))
        if record.note:
            shown.append(Text(f"  note: {record.note}"))
        shown += [Text(f"  failed: {name}: {error}") for name, error in record.failures]
    return Group(*shown)


def fits_table(records: list[Record], found: list[Fit]) -> RenderableType:
    """The longest prompt that fits, for each series and size of memory."""
    columns = sizes(records)
    shown: list[RenderableType] = [Text("What fits where", style="bold")]
    for title, same in groupby(found, key=lambda fit: f"{fit.model} on {fit.device}"):
        table = Table(title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD)
        table.add_column("GiB of memory", min_width=14)
        for gib in columns:
            table.add_column(str(gib), justify="right", no_wrap=True)
        for fit in same:
            table.add_row(fit.series, *(words.fit_cell(fit, gib) for gib in columns))
        shown.append(table)
    return Group(*shown, Text(words.FITS_CAPTION, style="dim"))
