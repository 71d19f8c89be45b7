"""Scores over bytes as SVG, drawn in the colours of the page."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import Any

from snapkv_local.eval import show
from snapkv_local.eval.scores import SCORES
from snapkv_local.report.units import size

Row = dict[str, Any]

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 28, 44

# what is not told apart any more
LOWEST = 1e-3

N_COLOURS = 8
_MARKS = ("dot", "square", "diamond")

# of lines, by type of the cache
_DASHES = {"f16": "", "q8_0": "6 3", "q4_0": "2 3"}


@dataclass(frozen=True)
class Series:
    """A policy in one type of cache, or the full cache.

    Attributes:
        label: for the legend.
        colour: its number; 0 is the full cache's.
        mark: the shape of its points: hollow for the full cache, else what tells policies of a
            colour apart.
        dash: of its line, as SVG has it.
        rows: by bytes.
    """

    label: str
    colour: int
    mark: str
    dash: str
    rows: list[Row]


def series_of(rows: list[Row]) -> list[Series]:
    """Of a group of a summary: a colour for each policy, a dash for each type."""
    policies = list(dict.fromkeys(row["policy"] for row in rows if row["policy"] != "full"))
    colours = {policy: i for i, policy in enumerate(["full", *policies])}
    found: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (colours[row["policy"]], row["bytes"])):
        found.setdefault((row["policy"], row["kv_type"]), []).append(row)
    return [
        Series(
            label=f"{show.policy(rows[0])} {kv_type}",
            colour=_colour(colours[policy]),
            mark=_mark(colours[policy]),
            dash=_DASHES[kv_type],
            rows=rows,
        )
        for (policy, kv_type), rows in found.items()
    ]


def _colour(i: int) -> int:
    return 0 if i == 0 else 1 + (i - 1) % (N_COLOURS - 1)


def _mark(i: int) -> str:
    return "hollow" if i == 0 else _MARKS[(i - 1) // (N_COLOURS - 1) % len(_MARKS)]


def mark(kind: str, x: float, y: float, title: str = "") -> str:
    """A point of a shape, with a text that shows when it is pointed at."""
    inner = f"<title>{escape(title)}</title>" if title else ""
    if kind == "square":
        place = f'x="{x - 4:g}" y="{y - 4:g}" width="8" height="8"'
        return f'<rect class="dot" {place}>{inner}</rect>'
    if kind == "diamond":
        path = f"M{x:g} {y - 5.5:g}l5.5 5.5l-5.5 5.5l-5.5 -5.5z"
        return f'<path class="dot" d="{path}">{inner}</path>'
    return f'<circle class="{kind}" cx="{x:g}" cy="{y:g}" r="4">{inner}</circle>'


def sample(series: Series) -> str:
    """A piece of a series for a legend."""
    line = f'<polyline points="0,6 36,6"{_dashed(series)}/>' if len(series.rows) > 1 else ""
    return f'<svg viewBox="0 0 36 12" aria-hidden="true">{line}{mark(series.mark, 18, 6)}</svg>'


def svg(series: list[Series], name: str) -> str:
    """A score of all series over the bytes that they keep."""
    rows = [row for one in series for row in one.rows]
    xs = _Axis.of_bytes([row["bytes"] for row in rows])
    ys = _Axis.of_score(name, [v for row in rows for v in row["scores"][name] if v is not None])
    label = SCORES[name].label
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)} by bytes kept">',
        f'<text class="head" x="{LEFT}" y="16">{escape(label)}</text>',
        f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">KV kept of the '
        "prompt</text>",
    ]
    for value, text in ys.ticks:
        y = _y(ys.place(value))
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{text}</text>'
        )
    for value, text in xs.ticks:
        x = _x(xs.place(value))
        parts.append(
            f'<text class="tick" x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{text}</text>'
        )
    for one in series:
        parts.append(_drawn(one, name, xs, ys))
    return "".join([*parts, "</svg>"])


def _drawn(series: Series, name: str, xs: _Axis, ys: _Axis) -> str:
    points, marks = [], []
    for row in series.rows:
        mean, low, high = row["scores"][name]
        x, y = _x(xs.place(row["bytes"])), _y(ys.place(mean))
        points.append(f"{x},{y}")
        if low is not None and high is not None:
            top, bottom = _y(ys.place(high)), _y(ys.place(low))
            marks.append(f'<line class="whisker" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>')
        interval = show.between(name, [mean, low, high])
        says = f"{series.label}, {row['budget'] or 'all'} rows, {size(row['bytes'])}: "
        says += f"{show.mean(name, [mean, low, high])} {interval and f'({interval})'}"
        marks.append(mark(series.mark, x, y, says))
    line = f'<polyline points="{" ".join(points)}"{_dashed(series)}/>' if len(points) > 1 else ""
    return f'<g class="c{series.colour}">{line}{"".join(marks)}</g>'


def _dashed(series: Series) -> str:
    return f' stroke-dasharray="{series.dash}"' if series.dash else ""


@dataclass(frozen=True)
class _Axis:
    """Values from low to high, by their logarithms or as they are."""

    low: float
    high: float
    is_log: bool
    ticks: list[tuple[float, str]]

    @classmethod
    def of_bytes(cls, values: list[int]) -> _Axis:
        """Powers of two around the values."""
        low, high = math.floor(math.log2(min(values))), math.ceil(math.log2(max(values)))
        high = max(high, low + 1)
        step = max(1, math.ceil((high - low) / 6))
        powers = range(low, high + 1, step)
        return cls(2.0**low, 2.0**high, True, [(2.0**p, size(2**p)) for p in powers])

    @classmethod
    def of_score(cls, name: str, values: list[float]) -> _Axis:
        """Shares from 0 to 1; others by powers of ten from LOWEST, or from 0 if they are close."""
        if SCORES[name].is_share:
            return cls(0, 1, False, [(i / 4, f"{25 * i}%") for i in range(5)])
        high = math.ceil(math.log10(max(*values, 10 * LOWEST)))
        low = math.floor(math.log10(max(min(values), LOWEST)))
        powers = range(low, max(high, low + 1) + 1)
        return cls(10.0**low, 10.0 ** powers[-1], True, [(10.0**p, f"{10.0**p:g}") for p in powers])

    def place(self, value: float) -> float:
        """In [0, 1]."""
        if not self.is_log:
            return (value - self.low) / (self.high - self.low)
        value = min(max(value, self.low), self.high)
        return math.log(value / self.low) / math.log(self.high / self.low)


def _x(place: float) -> float:
    return round(LEFT + 10 + place * (WIDTH - LEFT - RIGHT - 20), 1)


def _y(place: float) -> float:
    return round(HEIGHT - BOTTOM - place * (HEIGHT - TOP - BOTTOM), 1)
