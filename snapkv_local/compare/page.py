"""Records side by side as one HTML file, which needs no other."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from snapkv_local.compare import words
from snapkv_local.compare.fits import fits, sizes
from snapkv_local.compare.plots import DARK, LIGHT, plots_of, series_of, svg
from snapkv_local.compare.reader import PARTS, Record, models
from snapkv_local.report.html import load_template


def page(records: list[Record]) -> str:
    """The page.

    Raises:
        ConfigError: jinja2 or matplotlib is missing.
    """
    template = load_template("snapkv_local.compare")
    found = fits(records)
    columns = sizes(records)
    return template.render(
        records=records,
        describe=words.describe,
        sections=[_section(title, sides) for title, sides in models(records)],
        head=words.HEAD,
        caption=words.CAPTION,
        not_measured=words.NOT_MEASURED,
        columns=columns,
        fits=[
            (model, [(fit, [words.fit_cell(fit, gib) for gib in columns]) for fit in same])
            for model, same in groupby(found, key=lambda fit: f"{fit.model} on {fit.device}")
        ],
        fits_caption=words.FITS_CAPTION,
        parts=[*enumerate(PARTS.values()), (len(LIGHT) - 1, "full KV cache")],
        light=LIGHT,
        dark=DARK,
    )


def _section(title: str, sides: list[Any]) -> dict[str, Any]:
    series = series_of(sides)
    drawn = plots_of(series)
    return {
        "title": title,
        "legend": series,
        "machines": [record.device for record, _ in sides],
        "plots": [svg(plot) for plot in drawn],
        "has_parts": any(plot.name == "parts" for plot in drawn),
        "tables": [
            (record, [(case, words.row(case, record)) for case in cases]) for record, cases in sides
        ],
    }
