"""A record of an evaluation as one HTML file, which needs no other and makes no request."""

from __future__ import annotations

from typing import Any

from snapkv_local.eval import heatmap, show
from snapkv_local.eval.plot import sample, series_of, svg
from snapkv_local.eval.scores import SCORES
from snapkv_local.report.html import load_template
from snapkv_local.report.units import size

PLOTTED = ("exact", "kl")
COMPARED = ("exact", "kl")

# of policies, the full cache first
LIGHT = ("#1b1f24", "#0b6e99", "#c2410c", "#15803d", "#7e22ce", "#b45309", "#be185d", "#0f766e")
DARK = ("#e6edf3", "#58a6d0", "#fb8c4e", "#4cc26b", "#c084fc", "#e3b341", "#f778ba", "#4fd1c5")


def page(data: dict[str, Any]) -> str:
    """The page.

    Args:
        data: of a record with a summary.

    Raises:
        ConfigError: jinja2 is missing, or matplotlib where several lengths are to be drawn.
    """
    groups = show.groups(data["summary"])
    return load_template("snapkv_local.eval").render(
        model=data["model"],
        device=data["device"],
        date=data["date"],
        version=data["version"],
        commit=data["commit"],
        note=data.get("note", ""),
        settings=data["settings"],
        against=data["against"],
        scores=list(SCORES.values()),
        compared=[SCORES[name] for name in COMPARED],
        sections=[_section(name, rows) for name, rows in groups.items()],
        by_task=_by_task(groups),
        heatmaps=[(heat.task, heatmap.svg(heat)) for heat in _mapped(data)],
        light=LIGHT,
        dark=DARK,
    )


def _mapped(data: dict[str, Any]) -> list[heatmap.HeatMap]:
    """What is worth a picture of length by depth."""
    maps = heatmap.of(data)
    return [heat for heat in maps if len(heat.lengths) > 1 or data["settings"].get("depths")]


def _section(name: str, rows: list[show.Row]) -> dict[str, Any]:
    series = series_of(rows)
    return {
        "name": name,
        "n_cases": max(row["n_cases"] for row in rows),
        "n_documents": max(row["n_documents"] for row in rows),
        "legend": [(one.colour, sample(one), one.label) for one in series],
        "plots": [svg(series, score) for score in PLOTTED],
        "rows": [_row(row) for row in rows],
    }


def _row(row: show.Row) -> dict[str, Any]:
    scores, against = row["scores"], row["against"]
    nothing: show.Interval = [None, None, None]
    differences: list[tuple[str, show.Interval]] = [
        (name, against[name] if against else nothing) for name in COMPARED
    ]
    return {
        "bytes": size(row["bytes"]),
        "policy": show.policy(row),
        "rows": row["budget"] or "all",
        "kv_type": row["kv_type"],
        "is_full": row["policy"] == "full",
        "scores": [(show.mean(n, scores[n]), show.between(n, scores[n])) for n in SCORES],
        "differences": [
            (show.difference(n, v), show.difference_between(n, v), show.verdict(n, v))
            for n, v in differences
        ],
    }


def _by_task(groups: dict[str, list[show.Row]]) -> dict[str, Any] | None:
    """Exact shares by cell and task; None if there is one group."""
    names = list(groups)[1:]
    if not names:
        return None
    found = {name: {row["cell"]: row for row in groups[name]} for name in names}
    rows = []
    for row in next(iter(groups.values())):
        there = [found[name].get(row["cell"]) for name in names]
        cells = [
            (show.mean("exact", r["scores"]["exact"]), show.mean("kl", r["scores"]["kl"]))
            if r
            else (show.NONE, "")
            for r in there
        ]
        rows.append((_row(row), cells))
    return {"names": names, "rows": rows}
