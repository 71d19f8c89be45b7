"""Decodes many sequences together, with compact caches and with llama.cpp's full ones, and writes a record.

    python3 measure/many.py --out DIR                  # all of it
    python3 measure/many.py --out DIR 'many-7b-16*'    # cases
    python3 measure/many.py --out DIR --smoke          # a tiny model: does the script run?

Options are those of measure/gpu.py, and so is the record, DIR/many-DEVICE.json. In each run one prompt is
evaluated, and its cache copied to the other sequences, so that only what comes after the prompts is
measured. What did not fit the device's memory is among the failures.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

import gpu
from cases import Case
from snapkv_local.bench.nvml import Gpus
from snapkv_local.bench.session import DECODE_CELLS
from snapkv_local.report.units import GIB

_TOKENS = 16 * 1024 - DECODE_CELLS
_SHAPES = {"7b": "llama2-7b", "8b": "llama31-8b"}
# sequences, and seconds of a run with the compact caches and with the full ones, on an H200
_NUMBERS = {
    "7b": ((1, 7, 7), (4, 7, 9), (8, 8, 11), (16, 10, 16), (32, 13, 8)),
    "8b": ((16, 8, 10), (64, 13, 17)),
}


def _case(size: str, n_seq: int, seconds: int, is_plain: bool) -> Case:
    name = f"many-{size}-{n_seq}"
    sequences = "1 sequence" if n_seq == 1 else f"{n_seq} sequences"
    label = f"{size.upper()}, {sequences} of 16K"
    return Case(
        f"{name}-plain" if is_plain else name,
        f"{label}, full cache" if is_plain else label,
        _SHAPES[size],
        _TOKENS,
        None if is_plain else {"budget": 2048},
        seconds,
        None if is_plain else f"{name}-plain",
        n_seq=n_seq,
        one_prompt=True,
        decode_repeats=2,
    )


CASES = tuple(
    _case(size, n_seq, seconds, is_plain)
    for size, numbers in _NUMBERS.items()
    for n_seq, ours, plain in numbers
    for is_plain, seconds in ((False, ours), (True, plain))
)


def lines(record: dict[str, Any]) -> list[str]:
    """What was found, a line for each case."""
    found = []
    for name, case in record["summary"].items():
        in_all = case["n_seq"] * case["decode_tokens_per_second"]
        plain = record["summary"].get(case["against"])
        times = (
            f", {case['decode_tokens_per_second'] / plain['decode_tokens_per_second']:.2f} times the "
            "full cache's"
            if plain
            else ""
        )
        runs = [run for run in record["runs"] if run["case"] == name]
        kept = statistics.median(run["bytes_kept"] for run in runs) / GIB
        peak = "-" if case["peak_device"] is None else f"{case['peak_device'] / GIB:.1f}"
        last = runs[0]["last_tokens"]
        found.append(
            f"{name}: {in_all:,.0f} tokens/s in all{times}; {kept:.2f} GiB of KV, {peak} GiB of the "
            f"device; {last.count(last[0])} of {len(last)} sequences say the same"
        )
    for failure in record["failures"]:
        error = failure["error"].strip().splitlines()[-1:]
        found.append(f"{failure['case']}: no run: {''.join(error)}")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure; 1 if a case with compact caches failed."""
    args = gpu.parse(arguments, CASES, __doc__)
    Gpus.open()  # what it needs is missing now, or after minutes
    bench = gpu.Bench(args, "many")
    bench.build()
    bench.measure(args.cases)
    bench.save()
    print("\n".join(lines(bench.record)))
    return int(any(not each["case"].endswith("-plain") for each in bench.record["failures"]))


if __name__ == "__main__":
    sys.exit(main())
