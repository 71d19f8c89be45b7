"""Plots of speed and memory against the prompt's length, as SVG for a page and PNG for elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from snapkv_local.compare.reader import PARTS, Case, Figure, Record, models
from snapkv_local.compare.words import short_tokens
from snapkv_local.report.drawing import GRID, INK, inline, settings
from snapkv_local.report.units import GIB, MIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing


# for light and dark: each has a contrast of 3 or more with the page on which it is used
LIGHT = ("#0b5fb0", "#b34700", "#1a7a3c", "#7b3fb3", "#a3174f", "#6b6100", "#00717a", "#5a5f66")
DARK = ("#6cb6ff", "#ffa657", "#56d364", "#d2a8ff", "#ff8fab", "#e3cf4a", "#4fd6de", "#b1bac4")
MARKERS = "osD^vPX*"
_MARKS, _HOLLOW_MARKS = "●■◆▲▼✚✖★", "○□◇△▽✛✕☆"  # characters that look like them

# in the place of which svg() puts the page's
_STAND_IN = tuple(f"#0a0b{i:02x}" for i in range(len(LIGHT)))


@dataclass(frozen=True)
class Series:
    """Cases that differ in the prompt's length only.

    Attributes:
        label: the machine and the settings.
        index: of its colour and marker.
        cases: by length.
        on_gpu: where its peak was measured.
    """

    label: str
    index: int
    cases: tuple[Case, ...]
    on_gpu: bool

    @property
    def is_full(self) -> bool:
        """Whether nothing was compressed: drawn dashed, with a hollow marker."""
        return self.cases[0].is_full

    @property
    def mark(self) -> str:
        """A character that looks like its marker."""
        return (_HOLLOW_MARKS if self.is_full else _MARKS)[self.index]


@dataclass(frozen=True)
class Plot:
    """One quantity of one model.

    Attributes:
        name: for a file.
        title: what is shown, with its unit.
        draw: draws it with these colours.
    """

    name: str
    title: str
    draw: Callable[[Axes, tuple[str, ...]], None]


def series_of(sides: list[tuple[Record, list[Case]]]) -> list[Series]:
    """The series of one model, on all machines."""
    found: dict[tuple[str, bool], list[Case]] = {}
    for record, cases in sides:
        for case in cases:
            label = case.series
            if len(sides) > 1:
                alike = sum(other.device == record.device for other, _ in sides) > 1
                label = f"{record.source if alike else record.device}: {label}"
            found.setdefault((label, record.on_gpu), []).append(case)
    return [
        Series(label, index % len(LIGHT), tuple(cases), on_gpu)
        for index, ((label, on_gpu), cases) in enumerate(found.items())
    ]


def plots_of(series: list[Series]) -> list[Plot]:
    """What can be drawn of a model's series."""
    kinds = sorted({"device" if s.on_gpu else "process" for s in series})
    where = " or ".join(kinds)
    quantities: dict[str, tuple[str, Callable[[Case], Figure | None], float]] = {
        "memory": (f"Peak memory of the {where}, GiB", lambda case: case.peak, GIB),
        "first-token": ("Time to first token, s", lambda case: case.first_token, 1),
        "prefill": ("Prefill, tokens/s", lambda case: case.prefill, 1),
        "decode": ("Decode, tokens/s", lambda case: case.decode, 1),
    }
    found = []
    for name, (title, take, unit) in quantities.items():
        if any(take(case) is not None for s in series for case in s.cases):
            found.append(Plot(name, title, _lines(series, take, unit)))
    longest = max(case.n_prompt for s in series for case in s.cases)
    bars = [(s, case) for s in series for case in s.cases if case.n_prompt == longest]
    if any(case.parts for _, case in bars):
        found.append(
            Plot(
                "parts", f"Memory of the prefill at {longest:,} tokens, by part, MiB", _parts(bars)
            )
        )
    return found


def svg(plot: Plot) -> str:
    """For a page that defines --s0, --s1, ... and --grid; text has the page's own colour."""
    with _drawing(plot, _STAND_IN, INK, GRID) as drawing:
        page = {colour: f"var(--s{i})" for i, colour in enumerate(_STAND_IN)}
        return inline(drawing, plot.title, page)


def write_pngs(records: list[Record], folder: Path) -> list[Path]:
    """Every plot as a PNG with its legend, on white.

    Raises:
        ConfigError: matplotlib is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for title, sides in models(records):
        series = series_of(sides)
        for plot in plots_of(series):
            slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
            path = folder / f"{slug}-{plot.name}.png"
            with _drawing(plot, LIGHT, "#1b1f24", "#d8dee4") as drawing:
                drawing.suptitle(title, fontsize=9, x=0.01, ha="left")
                handles, labels = drawing.axes[0].get_legend_handles_labels()
                drawing.legend(
                    handles, labels, loc="upper left", bbox_to_anchor=(0.02, 0), fontsize=7
                )
                drawing.savefig(path, dpi=160, facecolor="white", bbox_inches="tight")
            written.append(path)
    return written


@contextmanager
def _drawing(plot: Plot, colours: tuple[str, ...], ink: str, grid: str) -> Iterator[Drawing]:
    with settings(ink, grid, plot.name):
        from matplotlib.figure import Figure as MatplotlibFigure

        drawing = MatplotlibFigure(figsize=(4.6, 3.2), layout="constrained")
        axes = drawing.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(plot.title, fontsize=9.5, loc="left")
        axes.set_axisbelow(True)
        plot.draw(axes, colours)
        yield drawing


def _lines(
    series: list[Series], take: Callable[[Case], Figure | None], unit: float
) -> Callable[[Axes, tuple[str, ...]], None]:
    def draw(axes: Axes, colours: tuple[str, ...]) -> None:
        for s in series:
            points = [(case.n_prompt, figure) for case in s.cases if (figure := take(case))]
            if not points:
                continue
            medians = [f.median / unit for _, f in points]
            spread = [
                [(f.median - f.low) / unit for _, f in points],
                [(f.high - f.median) / unit for _, f in points],
            ]
            axes.errorbar(
                [n for n, _ in points],
                medians,
                yerr=spread,
                label=s.label,
                color=colours[s.index],
                marker=MARKERS[s.index],
                markersize=5.5,
                markerfacecolor="none" if s.is_full else colours[s.index],
                linestyle="--" if s.is_full else "-",
                linewidth=1.5,
                capsize=2,
            )
        axes.set_xlabel("prompt, tokens")
        axes.grid(True, linewidth=0.6)
        _token_ticks(axes, sorted({case.n_prompt for s in series for case in s.cases}))
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")

    return draw


def _token_ticks(axes: Axes, lengths: list[int]) -> None:
    """At the measured lengths, but for those that would stand on each other."""
    room = max(lengths) * 0.13
    ticks: list[int] = []
    for n in reversed(lengths):
        if not ticks or ticks[-1] - n >= room:
            ticks.append(n)
    axes.set_xlim(0, max(lengths) * 1.06)
    axes.set_xticks([0, *reversed(ticks)])
    axes.set_xticklabels(["0", *map(short_tokens, reversed(ticks))])


def _parts(
    bars: list[tuple[Series, Case]],
) -> Callable[[Axes, tuple[str, ...]], None]:
    def draw(axes: Axes, colours: tuple[str, ...]) -> None:
        labels = []
        for y, (s, case) in enumerate(bars):
            left = 0.0
            shown = case.parts or {"full": case.bytes_kv_full or 0}
            for name, n_bytes in shown.items():
                index = list(PARTS).index(name) if name in PARTS else len(LIGHT) - 1
                axes.barh(
                    y, n_bytes / MIB, left=left, color=colours[index], height=0.6, linewidth=0
                )
                left += n_bytes / MIB
            labels.append(s.mark)
        axes.set_yticks(range(len(bars)))
        axes.set_yticklabels(labels)
        for tick, (s, _) in zip(axes.get_yticklabels(), bars, strict=True):
            tick.set_color(colours[s.index])
        axes.invert_yaxis()
        axes.set_ylim(max(len(bars), 3) - 0.4, -0.6)
        axes.grid(True, axis="x", linewidth=0.6)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.locator_params(axis="x", nbins=5)
        for index, label in enumerate([*PARTS.values(), "full KV cache"]):
            colour = colours[index if index < len(PARTS) else len(LIGHT) - 1]
            axes.barh(0, 0, color=colour, label=label)

    return draw
