"""Measure memory and speed on the demo model, and write records to results/.

    measure/cpu.py memory     # bytes by part and peak resident memory, for G and the full cache
    measure/cpu.py speed      # prefill and decode against the full cache, alternating runs

Each run is the worker's of `snapkv-local bench`, in a process of its own, so that its peak memory is its
own and no run warms another up.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from datetime import date
from pathlib import Path
from typing import Any

from snapkv_local.bench import record as records
from snapkv_local.bench.process import work
from snapkv_local.bench.session import Settings
from snapkv_local.models.resolve import demo_model
from snapkv_local.report.units import MIB

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"

N_PROMPT = 8000
BUDGET = 512
DECODE_CELLS = 96
N_DECODE = 64


def one_run(mode: str) -> dict[str, Any]:
    """A prefill, then N_DECODE tokens. mode is "full", "auto" or a number G."""
    config = None
    if mode != "full":
        config = {"budget": BUDGET, "layer_group": mode if mode == "auto" else int(mode)}
    settings = Settings(
        path=str(demo_model()),
        n_prompt=N_PROMPT,
        config=config,
        decode_cells=DECODE_CELLS,
        n_gpu_layers=0,
        n_decode=N_DECODE,
    )
    found, error = work("run", settings.to_dict())
    if found is None:
        sys.exit(f"{mode}: {error}")
    run = {
        "mode": mode,
        "prefill_tokens_per_second": found["prefill_tokens_per_second"],
        "decode_tokens_per_second": found["decode_tokens_per_second"][0],
        "seconds_prefill": found["seconds_prefill"],
        "peak_rss": found["peak_rss"],
        "stats": found["stats"],
    }
    print(
        f"{mode:>5}: prefill {run['prefill_tokens_per_second']:.0f} tokens/s, decode "
        f"{run['decode_tokens_per_second']:.1f}, peak {run['peak_rss'] / MIB:.0f} MiB",
        file=sys.stderr,
    )
    return run


def write(name: str, runs: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    """A record with all that is needed to judge it."""
    record = {
        "date": date.today().isoformat(),
        "commit": records.commit(ROOT),
        "machine": records.machine(),
        "model": "SmolLM2-135M-Instruct Q4_1",
        "settings": {
            "n_prompt": N_PROMPT,
            "budget": BUDGET,
            "decode_cells": DECODE_CELLS,
            "n_decode": N_DECODE,
            "kv_type": "f16",
        },
        "summary": summary,
        "runs": runs,
    }
    records.write(RESULTS / f"{name}.json", record)
    print(json.dumps(summary, indent=1))


def memory() -> None:
    """Bytes by part and peak resident memory: G = 1, auto, all layers, and the full cache."""
    runs = [one_run(mode) for mode in ("1", "auto", "30", "full")]
    one, full = runs[0], runs[-1]
    kv = one["stats"]["bytes_kv"] + one["stats"]["bytes_kv_group"]
    summary = {
        "kv_bytes_g1": kv,
        "kv_bytes_full": one["stats"]["bytes_kv_full"],
        "kv_share_g1": kv / one["stats"]["bytes_kv_full"],
        "peak_rss_mib": {r["mode"]: round(r["peak_rss"] / MIB, 1) for r in runs},
        "peak_rss_saved_mib": round((full["peak_rss"] - one["peak_rss"]) / MIB, 1),
    }
    write("memory-smollm2-8k", runs, summary)


def speed(repeat: int) -> None:
    """Prefill and decode, G = 1 against the full cache, alternating."""
    runs = [one_run(mode) for _ in range(repeat) for mode in ("full", "1")]
    full = [r for r in runs if r["mode"] == "full"]
    ours = [r for r in runs if r["mode"] == "1"]

    def figures(name: str) -> dict[str, Any]:
        a = [r[name] for r in full]
        b = [r[name] for r in ours]
        pairs = [y / x for x, y in zip(a, b, strict=True)]
        return {
            "full": statistics.median(a),
            "g1": statistics.median(b),
            "ratio_of_medians": statistics.median(b) / statistics.median(a),
            "ratios_of_pairs": [round(p, 3) for p in pairs],
        }

    names = ("decode_tokens_per_second", "seconds_prefill")
    write("speed-smollm2-8k", runs, {name: figures(name) for name in names})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["memory", "speed"])
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    if args.what == "memory":
        memory()
    else:
        speed(args.repeat)


if __name__ == "__main__":
    main()
