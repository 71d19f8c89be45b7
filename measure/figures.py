"""A record as a short table."""

from __future__ import annotations

from typing import Any

from snapkv_local.report.units import GIB


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
            extra = "".join(
                f", {part}: mean Jaccard {value['jaccard_mean']:.4f}"
                for part, value in check.items()
                if isinstance(value, dict) and "jaccard_mean" in value
            )
            lines.append(f"check {name}: {result}{extra}")
    for failure in record["failures"]:
        last = failure["error"].strip().splitlines()[-1:]
        lines.append(f"failed: {failure['case']}: {''.join(last)}")
    for left in record["left_out"]:
        lines.append(f"left out: {left['case']}: {left['reason']}")
    return "\n".join(lines)
