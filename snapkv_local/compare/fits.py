"""What fits where: measured peaks against sizes of memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from snapkv_local.compare.reader import Case, Record
from snapkv_local.report.units import GIB

# GiB: laptops, desktop GPUs, datacenter GPUs
SIZES = (1, 4, 8, 16, 24, 48, 80)

# of what a machine or card is sold with, since others need some: the system, the display, the driver
USABLE = 0.9


@dataclass(frozen=True)
class Fit:
    """What a series of measurements says of sizes of memory.

    Attributes:
        source: the record's.
        device: that it was measured on.
        model: with its weights.
        series: cache and other settings.
        measured: prompt tokens and median peak in bytes, in order.
        fits: by size in GiB: the longest measured prompt whose peak fits, in tokens; 0 for none.
        along: by size in GiB: the longest prompt that fits by the straight line through the first
            and the last measured peak, in tokens; None where a line cannot say: with one length,
            or a peak that does not grow.
        n_ctx_train: tokens that the model was trained for; None if it is not recorded.
        adapts: where memory is short less is taken: on a GPU, the hidden state goes to the host.
    """

    source: str
    device: str
    model: str
    series: str
    measured: tuple[tuple[int, float], ...]
    fits: dict[int, int]
    along: dict[int, int | None]
    adapts: bool
    n_ctx_train: int | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def sizes(records: list[Record]) -> tuple[int, ...]:
    """GiB: SIZES, and the memory of each record's machine, to a GiB."""
    known = {max(round(r.memory / GIB), 1) for r in records if r.memory is not None}
    return tuple(sorted({*SIZES, *known}))


def fits(records: list[Record]) -> list[Fit]:
    """One for each series of each record whose peak was measured."""
    columns = sizes(records)
    found = []
    for record in records:
        series: dict[tuple[str, str], list[Case]] = {}
        for case in record.cases:
            if case.peak is not None:
                key = (f"{case.model}, {case.weights}", case.series)
                series.setdefault(key, []).append(case)
        for (model, name), cases in series.items():
            adapts = record.on_gpu and "G = auto" in name
            points = sorted((case.n_prompt, case.peak.median) for case in cases if case.peak)
            found.append(
                Fit(
                    source=record.source,
                    device=record.device,
                    model=model,
                    series=name,
                    measured=tuple(points),
                    fits={g: _longest(points, g * GIB * USABLE) for g in columns},
                    along={g: _along(points, g * GIB * USABLE) for g in columns},
                    adapts=adapts,
                    n_ctx_train=cases[0].n_ctx_train,
                )
            )
    order = list(dict.fromkeys(fit.model for fit in found))
    return sorted(found, key=lambda fit: order.index(fit.model))


def _longest(points: list[tuple[int, float]], usable: float) -> int:
    return max((n for n, peak in points if peak <= usable), default=0)


def _along(points: list[tuple[int, float]], usable: float) -> int | None:
    (n_first, first), (n_last, last) = points[0], points[-1]
    if n_last == n_first or last <= first:
        return None
    slope = (last - first) / (n_last - n_first)
    return max(int(n_first + (usable - first) / slope), 0)
