"""From runs to medians, and to a short table."""

from __future__ import annotations

import statistics
from typing import Any

GIB = 1024**3


def summarize(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Medians by case. A decode speed is that of one sequence, in tokens/s."""
    names = dict.fromkeys(run["case"] for run in runs)
    return {name: _median([run for run in runs if run["case"] == name]) for name in names}


def _median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    def median(values: list[Any]) -> Any:
        known = [value for value in values if value is not None]
        return statistics.median(known) if known else None

    first = runs[0]
    decode = [value for run in runs for value in run["decode_tokens_per_second"]]
    return {
        "label": first["label"],
        "against": first["against"],
        "n_runs": len(runs),
        "n_decode_runs": len(decode),
        "n_prompt": first["settings"]["n_prompt"],
        "n_seq": first["settings"]["n_seq"],
        "seconds_prefill": median([run["seconds_prefill"] for run in runs]),
        "prefill_tokens_per_second": median([run["prefill_tokens_per_second"] for run in runs]),
        "decode_tokens_per_second": median(decode),
        "decode_ms_per_step": 1000 / median(decode),
        "peak_device": median([run["peak_device"] for run in runs]),
        "peak_rss": median([run["peak_rss"] for run in runs]),
        "layer_group": first["stats"] and first["stats"]["layer_group"],
        "chunk": first["stats"] and first["stats"]["chunk"],
    }


def table(record: dict[str, Any]) -> str:
    """A record in short: a line a case, then what went wrong and what was left out."""
    head = ("case", "runs", "prefill s", "tokens/s", "decode tokens/s", "GiB device", "GiB host")
    rows = [head]
    for name, s in record["summary"].items():
        rows.append(
            (
                name,
                str(s["n_runs"]),
                f"{s['seconds_prefill']:.2f}",
                f"{s['prefill_tokens_per_second']:,.0f}",
                f"{s['decode_tokens_per_second']:.1f}",
                "-" if s["peak_device"] is None else f"{s['peak_device'] / GIB:.2f}",
                f"{s['peak_rss'] / GIB:.2f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    for name, check in record["checks"].items():
        if isinstance(check, dict):
            result = {True: "passed", False: "FAILED", None: "not run"}[check["passed"]]
            extra = f", mean Jaccard {check['jaccard_mean']:.4f}" if "jaccard_mean" in check else ""
            lines.append(f"check {name}: {result}{extra}")
    for failure in record["failures"]:
        last = failure["error"].strip().splitlines()[-1:]
        lines.append(f"failed: {failure['case']}: {''.join(last)}")
    for left in record["left_out"]:
        lines.append(f"left out: {left['case']}: {left['reason']}")
    return "\n".join(lines)
