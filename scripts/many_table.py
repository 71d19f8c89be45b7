"""The table of many sequences that decode together, from measure/many.py."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from snapkv_local.report.units import GIB
from table_parts import size, table

_HEAD = ["", "sequences", "tokens/s in all", "full cache", "times as many"]
_HEAD += ["of one sequence", "full cache", "KV cache", "full", "device memory", "full"]


def many(results: Path) -> str:
    """A table for each device; a row for each number of sequences, with the full cache beside it."""
    tables = [_of(json.loads(file.read_text())) for file in sorted(results.glob("many-*.json"))]
    return "\n\n".join(tables) or "Many sequences at once are not measured yet."


def _of(record: dict[str, Any]) -> str:
    summary = record["summary"]
    failed = {failure["case"] for failure in record["failures"]}
    cells = []
    for name, case in summary.items():
        if case["against"] is None:
            continue  # beside the one it is compared with
        sides = [_side(record, name), _side(record, case["against"])]
        if sides[1] is None:
            missing = "does not fit" if case["against"] in failed else "-"
            sides[1] = [missing, "-", "-", "-"]
        of_full = summary.get(case["against"])
        times = (
            case["decode_tokens_per_second"] / of_full["decode_tokens_per_second"] if of_full else 0
        )
        in_all, *rest = ([side[i] for side in sides if side] for i in range(4))
        row = [*in_all, f"{times:.1f}" if times else "-", *(cell for pair in rest for cell in pair)]
        cells.append([case["label"].partition(",")[0], str(case["n_seq"]), *row])
    run = record["runs"][0]
    settings = run["settings"]
    said = (
        f"{record['device']['name']}: shapes of Llama-2-7B (a KV head for each of 32 heads) and "
        f"Llama-3.1-8B (8 KV heads), with random weights in {settings['weights']} and {settings['kv_type']} "
        f"KV, prompts of {settings['n_prompt']:,} tokens, a budget of {settings['config']['budget']:,}. The "
        "full cache is plain llama.cpp of the same commit, with its own batched decoding, in the same "
        "call. One prompt is evaluated, and its cache copied to the other sequences: only decoding is "
        f"measured, medians of {settings['decode_repeats']} times {settings['n_decode']} tokens of each "
        f"sequence. Device memory is the peak, and what does not fit its {_memory(record)} has no run. "
        f"Commit {run['commit'][:9]}.\n"
    )
    return "\n".join([said, *table(_HEAD, cells)])


def _side(record: dict[str, Any], name: str) -> list[str] | None:
    """Cells of a case; None if it has no run."""
    case = record["summary"].get(name)
    if case is None:
        return None
    kept = statistics.median(run["bytes_kept"] for run in record["runs"] if run["case"] == name)
    speed = case["decode_tokens_per_second"]
    return [
        f"{case['n_seq'] * speed:,.0f}",
        f"{speed:.1f}",
        size(kept, GIB),
        size(case["peak_device"], GIB),
    ]


def _memory(record: dict[str, Any]) -> str:
    """Of the device, which nvidia-smi gives in MiB."""
    return f"{int(record['device']['memory.total'].split()[0]) / 1024:.0f} GiB"
