"""From runs to figures: medians, and the spread beside them."""

from __future__ import annotations

import statistics
from typing import Any

Run = dict[str, Any]


def summarize(runs: list[Run]) -> dict[str, dict[str, Any]]:
    """Medians by case, and [lowest, highest] under "spread".

    A decode speed is that of one sequence, in tokens/s. What was not measured is None.
    """
    names = dict.fromkeys(run["case"] for run in runs)
    return {name: _case([run for run in runs if run["case"] == name]) for name in names}


def values(runs: list[Run]) -> dict[str, list[float]]:
    """All measured values of a case by figure; those of a run that timed several count each."""
    found: dict[str, list[float | None]] = {
        "seconds_first_token": [first_token(run) for run in runs],
        "seconds_prefill": [run["seconds_prefill"] for run in runs],
        "prefill_tokens_per_second": [run["prefill_tokens_per_second"] for run in runs],
        "decode_tokens_per_second": [v for run in runs for v in run["decode_tokens_per_second"]],
        "peak_device": [run["peak_device"] for run in runs],
        "peak_rss": [run["peak_rss"] for run in runs],
    }
    return {name: [v for v in given if v is not None] for name, given in found.items()}


def first_token(run: Run) -> float | None:
    """Seconds to the first token. Older records have it of one sequence only: all of the prefill."""
    if "seconds_first_token" in run:
        return float(run["seconds_first_token"])
    return run["seconds_prefill"] if run["settings"]["n_seq"] == 1 else None


def _case(runs: list[Run]) -> dict[str, Any]:
    first = runs[0]
    found = values(runs)
    medians = {name: statistics.median(v) if v else None for name, v in found.items()}
    decode = medians["decode_tokens_per_second"]
    return {
        "label": first["label"],
        "against": first["against"],
        "n_runs": len(runs),
        "n_decode_runs": len(found["decode_tokens_per_second"]),
        "n_prompt": first["settings"]["n_prompt"],
        "n_seq": first["settings"]["n_seq"],
        **medians,
        "decode_ms_per_step": None if decode is None else 1000 / decode,
        "layer_group": first["stats"] and first["stats"]["layer_group"],
        "n_ubatch": first["stats"] and first["stats"]["n_ubatch"],
        "spread": {name: [min(v), max(v)] if v else None for name, v in found.items()},
    }
