"""Measure memory and speed on the demo model, and write records to results/.

    measure/cpu.py memory     # bytes by part and peak resident memory, for G and the full cache
    measure/cpu.py speed      # prefill and decode against the full cache, alternating runs

Each run is a process of its own, so that its peak memory is its own and no run warms another up. Speed
does not depend on what the text says: the prompt is the demo's document, repeated.
"""

from __future__ import annotations

import argparse
import importlib.resources
import json
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

from snapkv_local.bench import record as records
from snapkv_local.hardware import n_cores

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"

N_PROMPT = 8000
N_CTX = 8192
BUDGET = 512
ROOM = 96
N_DECODE = 64
MIB = 1024**2


def one_run(mode: str) -> dict[str, Any]:
    """In its own process: one prefill, then N_DECODE tokens. mode is "full", "auto" or a number G."""
    from snapkv_local import SnapKVConfig
    from snapkv_local.hardware import peak_rss
    from snapkv_local.llama.llama import Llama
    from snapkv_local.models.resolve import demo_model

    config = None
    if mode != "full":
        group: Any = mode if mode == "auto" else int(mode)
        config = SnapKVConfig(budget=BUDGET, room=ROOM, layer_group=group)
    cores = n_cores()
    llm = Llama(
        str(demo_model()),
        snapkv=config,
        n_ctx=N_CTX,
        flash_attn=True,
        n_threads=cores,
        n_threads_batch=cores,
        verbose=False,
    )
    text = importlib.resources.files("snapkv_local").joinpath("demo", "station.txt").read_bytes()
    tokens = llm.tokenize(text)
    tokens = (tokens * (N_PROMPT // len(tokens) + 1))[:N_PROMPT]

    rss_before = peak_rss()
    started = time.monotonic()
    llm.eval(tokens)
    seconds_prefill = wait(llm, started)
    token = tokens[0]
    llm.eval([token])
    wait(llm, started)
    started = time.monotonic()
    for _ in range(N_DECODE):
        llm.eval([token])
        wait(llm, started)
    seconds_decode = time.monotonic() - started
    stats = llm.last_prefill
    return {
        "mode": mode,
        "prefill_tokens_per_second": N_PROMPT / seconds_prefill,
        "decode_tokens_per_second": N_DECODE / seconds_decode,
        "seconds_prefill": seconds_prefill,
        "peak_rss": peak_rss(),
        "peak_rss_before_prefill": rss_before,
        "stats": stats.to_dict() if stats else None,
    }


def wait(llm: Any, started: float) -> float:
    """Seconds since started, when all that was queued is computed."""
    from llama_cpp import llama_cpp

    llama_cpp.llama_synchronize(llm.ctx)
    return time.monotonic() - started


def in_process(mode: str) -> dict[str, Any]:
    """one_run() in a process of its own."""
    command = [sys.executable, __file__, "run", mode]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    record: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    print(
        f"{mode:>5}: prefill {record['prefill_tokens_per_second']:.0f} tokens/s, decode "
        f"{record['decode_tokens_per_second']:.1f}, peak {record['peak_rss'] / MIB:.0f} MiB",
        file=sys.stderr,
    )
    return record


def write(name: str, runs: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    """A record with all that is needed to judge it."""
    record = {
        "date": date.today().isoformat(),
        "commit": records.commit(ROOT),
        "machine": records.machine(),
        "model": "SmolLM2-135M-Instruct Q4_1",
        "settings": {
            "n_prompt": N_PROMPT,
            "n_ctx": N_CTX,
            "budget": BUDGET,
            "room": ROOM,
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
    runs = [in_process(mode) for mode in ("1", "auto", "30", "full")]
    one, full = runs[0], runs[-1]
    kv = one["stats"]["bytes_compact"] + one["stats"]["bytes_staging"]
    summary = {
        "kv_bytes_g1": kv,
        "kv_bytes_full": one["stats"]["bytes_full_cache"],
        "kv_share_g1": kv / one["stats"]["bytes_full_cache"],
        "peak_rss_mib": {r["mode"]: round(r["peak_rss"] / MIB, 1) for r in runs},
        "peak_rss_saved_mib": round((full["peak_rss"] - one["peak_rss"]) / MIB, 1),
    }
    write("memory-smollm2-8k", runs, summary)


def speed(repeat: int) -> None:
    """Prefill and decode, G = 1 against the full cache, alternating."""
    runs = [in_process(mode) for _ in range(repeat) for mode in ("full", "1")]
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
    parser.add_argument("what", choices=["memory", "speed", "run"])
    parser.add_argument("mode", nargs="?", help="of `run`: full, auto or G")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    if args.what == "run":
        print(json.dumps(one_run(args.mode)))
    elif args.what == "memory":
        memory()
    else:
        speed(args.repeat)


if __name__ == "__main__":
    main()
