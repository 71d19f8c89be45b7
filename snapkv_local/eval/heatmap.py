"""Right answers by the prompt's length and the fact's depth: a panel for each policy and budget."""

from __future__ import annotations

import json
import math
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from snapkv_local.errors import ConfigError
from snapkv_local.eval import show
from snapkv_local.eval.cell import Cell
from snapkv_local.report.drawing import GRID, INK, inline, settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]

MOST_DEPTHS = 10  # bins, where the record does not say how many depths there are
# its lightness rises evenly, and it looks nearly the same to people who see red and green alike
SCALE = "cividis"
THEMES = {"": ("#1b1f24", "#d0d7de", "#ffffff"), "-dark": ("#e6edf3", "#3d444d", "#0d1117")}


@dataclass(frozen=True)
class Panel:
    """One way to hold the prompt.

    Attributes:
        cell: policy, budget and type of the cache.
        shares: [n_depths, n_lengths] of exact answers, nan where nothing was measured.
    """

    cell: Cell
    shares: Floats

    @property
    def mean(self) -> float:
        """Over what was measured, each place counting the same."""
        return float(np.nanmean(self.shares))


@dataclass(frozen=True)
class HeatMap:
    """All panels of a task.

    Attributes:
        model: its name.
        task: its name.
        lengths: of prompts, in tokens, ascending.
        n_depths: bins of equal size, 0 the document's begin.
        n_cases: least and most of a place that was measured.
        rows: panels of the full cache, then those of each policy, by budget.
    """

    model: str
    task: str
    lengths: tuple[int, ...]
    n_depths: int
    n_cases: tuple[int, int]
    rows: tuple[tuple[Panel, ...], ...]


def of(data: dict[str, Any]) -> list[HeatMap]:
    """Of each task whose facts stand at one place, in prompts of a length.

    Args:
        data: of a record.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for case in data["cases"].values():
        if case["length"] is not None and case["depth"] is not None:
            found.setdefault(case["task"], []).append(case)
    return [_of_task(data, task, cases) for task, cases in found.items()]


def _of_task(data: dict[str, Any], task: str, cases: list[dict[str, Any]]) -> HeatMap:
    lengths = sorted({case["length"] for case in cases})
    n_depths = data["settings"].get("depths") or MOST_DEPTHS
    places = [
        (min(int(c["depth"] * n_depths), n_depths - 1), lengths.index(c["length"])) for c in cases
    ]
    counts: list[int] = []
    by_policy: dict[str, list[Panel]] = {}
    for name, told in data["cells"].items():
        right, n = np.zeros((2, n_depths, len(lengths)))
        for case, place in zip(cases, places, strict=True):
            if name in case["scores"]:
                right[place] += case["scores"][name]["exact"]
                n[place] += 1
        if not n.any():
            continue
        counts += n[n > 0].astype(int).tolist()
        with np.errstate(invalid="ignore"):
            shares = right / n
        cell = Cell(told["policy"], told["budget"] or 0, told["kv_type"])
        by_policy.setdefault(told["policy"], []).append(Panel(cell, shares))
    rows = tuple(
        tuple(sorted(panels, key=lambda panel: (panel.cell.kv_type != "f16", panel.cell.budget)))
        for panels in by_policy.values()
    )
    n_cases = (min(counts), max(counts))
    return HeatMap(data["model"]["name"], task, tuple(lengths), n_depths, n_cases, rows)


def numbers(heat: HeatMap) -> dict[str, Any]:
    """What is drawn, for JSON: shares by cell, depth and length."""
    return {
        "model": heat.model,
        "task": heat.task,
        "lengths": heat.lengths,
        "depths": heat.n_depths,
        "exact": {
            panel.cell.name: [
                [None if math.isnan(x) else round(x, 4) for x in row] for row in panel.shares
            ]
            for row in heat.rows
            for panel in row
        },
    }


def write_pngs(data: dict[str, Any], path: Path) -> list[Path]:
    """Draw a record for light pages, and beside it as NAME-dark for dark ones.

    Args:
        data: of the record.
        path: of the light picture; of several tasks, each has its own, NAME-TASK.

    Returns:
        The files that were written.

    Raises:
        ConfigError: the record has nothing to draw, or matplotlib is missing.
    """
    maps = of(data)
    if not maps:
        raise ConfigError(
            "--heatmap",
            "the tasks have no facts at a depth of a prompt of a length",
            "measure needle, needles, keys or another task that plants one",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for heat in maps:
        task = f"-{heat.task}" if len(maps) > 1 else ""
        for suffix, (ink, grid, ground) in THEMES.items():
            file = themed(path.with_name(f"{path.stem}{task}{path.suffix or '.png'}"), suffix)
            with settings(ink, grid, heat.task):
                told = {"Description": json.dumps(numbers(heat))}
                figure(heat, grid).savefig(file, dpi=160, facecolor=ground, metadata=told)
            written.append(file)
    return written


def themed(path: Path, suffix: str) -> Path:
    """The place of a theme's picture, one of THEMES."""
    return path.with_name(f"{path.stem}{suffix}{path.suffix}")


def svg(heat: HeatMap) -> str:
    """For a page that defines --grid; text has the page's own colour.

    Raises:
        ConfigError: matplotlib is missing.
    """
    with settings(INK, GRID, heat.task):
        return inline(figure(heat, GRID), f"{heat.task}: exact answers by length and depth")


def figure(heat: HeatMap, grid: str) -> Figure:
    """The drawing; what was not measured is hatched."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    n_rows, n_columns = len(heat.rows), max(map(len, heat.rows))
    drawing = Figure(figsize=(1.2 + 2.1 * n_columns, 1 + 1.35 * n_rows), layout="constrained")
    axes = drawing.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=True)
    for row, places in zip(heat.rows, axes, strict=True):
        for panel, place in zip(row, places, strict=False):
            _draw(panel, heat, place, grid)
        for place in places[len(row) :]:
            place.set_axis_off()
        places[0].set_ylabel(_wrapped(show.policy(row[0].cell.to_dict())), fontsize=9)
    drawing.supxlabel("prompt, tokens", fontsize=9)
    least, most = heat.n_cases
    n = f"{least}" if least == most else f"{least} to {most}"
    cases = "case" if most == 1 else "cases"
    bar = drawing.colorbar(
        ScalarMappable(cmap=SCALE), ax=axes, location="top", shrink=0.5, aspect=40, pad=0.02
    )
    has_gaps = any(np.isnan(panel.shares).any() for row in heat.rows for panel in row)
    says = f"exact answers by the prompt's length and the fact's depth, {n} {cases} a field"
    says += "; hatched: not measured" if has_gaps else ""
    bar.set_label(textwrap.fill(says, 28 * n_columns), fontsize=9)
    bar.set_ticks([0, 0.5, 1], labels=["0%", "50%", "100%"])
    bar.outline.set_visible(False)
    return drawing


def _draw(panel: Panel, heat: HeatMap, place: Any, grid: str) -> None:
    cell = panel.cell
    rows = f"{cell.budget:,} rows" if cell.budget else "all rows"
    kv_type = f" {cell.kv_type}" if cell.is_full or cell.kv_type != "f16" else ""
    place.set_title(f"{rows}{kv_type}: {100 * panel.mean:.0f}%", fontsize=9)
    place.patch.set(hatch="////", edgecolor=grid, facecolor="none", linewidth=0)
    place.pcolormesh(np.ma.masked_invalid(panel.shares), cmap=SCALE, vmin=0, vmax=1)
    place.set_xlim(0, len(heat.lengths))
    place.set_ylim(heat.n_depths, 0)  # the document's begin on top
    step = math.ceil(len(heat.lengths) / 5)
    shown = range(0, len(heat.lengths), step)
    place.set_xticks([i + 0.5 for i in shown], [_short(heat.lengths[i]) for i in shown])
    place.set_yticks([0, heat.n_depths / 2, heat.n_depths], ["0%", "50%", "100%"])
    place.tick_params(labelsize=8, length=2)


def _short(n_tokens: int) -> str:
    """A length in few characters, 128K for 131,072."""
    return f"{n_tokens / 1024:.3g}K" if n_tokens >= 1024 else f"{n_tokens}"


def _wrapped(name: str) -> str:
    """A policy in lines that are short enough for the side of a panel."""
    return name.replace(":", ":\n").replace("+", "\n+")
