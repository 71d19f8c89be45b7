"""Is a device to be called proven? Many small questions and a short run, in one record to send back.

Each size of heads has a process of its own, because a backend that nobody has tried may end it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from snapkv_local.bench import record as records
from snapkv_local.bench.process import work
from snapkv_local.bench.runner import Machine, Record
from snapkv_local.bench.session import Settings

FORMAT = "proof 1"

# elements; several query heads for each KV head, and one
HEADS = (
    {"head_dim": 64, "n_head": 4, "n_head_kv": 4},
    {"head_dim": 80, "n_head": 8, "n_head_kv": 2},
    {"head_dim": 96, "n_head": 8, "n_head_kv": 8},
    {"head_dim": 128, "n_head": 16, "n_head_kv": 2},
    {"head_dim": 256, "n_head": 8, "n_head_kv": 4},
)
# and what a head's elements have to be a multiple of: it is copied in units of 4 bytes
KV_TYPES = {"f16": 2, "q8_0": 64}
LAYER_GROUPS = (1, 4, 0)  # 0: all
LIMIT = 600.0  # seconds for one size of heads

# votes that fused ops and ggml's count: as a share of the greatest. The rounding of sums in another
# order is below it
MAX_DIFF_OPS = 1e-3

BENCH_PROMPT = 4096
BENCH_BUDGET = 512

Note = Callable[[str], object]


def questions(head: dict[str, int]) -> list[dict[str, Any]]:
    """All that is asked about one size of heads."""
    kinds = [kind for kind, unit in KV_TYPES.items() if head["head_dim"] % unit == 0]
    return [
        {**head, "kv_type": kind, "layer_group": group}
        for kind, group in product(kinds, LAYER_GROUPS)
    ]


def prove(device: dict[str, Any], note: Note) -> Record:
    """The device as the record has it: its cases, and the verdict.

    Args:
        device: as native.devices.Device.to_dict() has it.
        note: called with a line on what comes next.
    """
    cases, failures = [], []
    for head in HEADS:
        note(f"{device['name']}: heads of {head['head_dim']} elements")
        asked = questions(head)
        found, error = work("prove", {"device": device["name"], "questions": asked}, timeout=LIMIT)
        if found is None:
            failures.append({**head, "error": error})
        else:
            cases.extend(found["cases"])
            failures.extend(found["failures"])
    return {**device, **verdict(cases, failures), "cases": cases, "failures": failures}


def verdict(cases: list[dict[str, Any]], failures: list[dict[str, Any]]) -> dict[str, Any]:
    """What the cases say together.

    Returns:
        exact: each difference is 0, and nothing failed. max_diff: the largest. fused: the share of
        cases that fused ops computed. max_diff_ops: the largest difference between votes of fused
        ops and ggml's; None without fused ops. ops_agree: it is small, or there are none.
    """
    ops = [case["max_diff_ops"] for case in cases if case["max_diff_ops"] >= 0]
    worst = max((case["max_diff"] for case in cases), default=None)
    return {
        "exact": bool(cases) and not failures and worst == 0,
        "max_diff": worst,
        "fused": len(ops) / len(cases) if cases else 0.0,
        "max_diff_ops": max(ops, default=None),
        "ops_agree": max(ops, default=0.0) <= MAX_DIFF_OPS,
    }


def short_run(model: Path, n_gpu_layers: int, note: Note) -> dict[str, Any]:
    """Tokens per second with a prompt of some thousand tokens, compressed and with the full cache."""
    found: dict[str, Any] = {"n_prompt": BENCH_PROMPT, "budget": BENCH_BUDGET}
    found["n_gpu_layers"] = n_gpu_layers
    for name, config in (("full", None), ("snapkv", {"budget": BENCH_BUDGET})):
        note(f"a prompt of {BENCH_PROMPT:,} tokens, {name}")
        settings = Settings(
            path=str(model),
            n_prompt=BENCH_PROMPT,
            config=config,
            n_gpu_layers=n_gpu_layers,
            n_decode=32,
        )
        # whatever the check of the small model says: the record has it
        environment = {**os.environ, "SNAPKV_UNPROVEN": "2"}
        figures, error = work("run", settings.to_dict(), environment=environment, timeout=LIMIT)
        kept = ("prefill_tokens_per_second", "decode_tokens_per_second", "stats")
        found[name] = {"error": error} if figures is None else {k: figures[k] for k in kept}
    return found


def make_record(machine: Machine, names: tuple[str, ...], model: Path, note: Note) -> Record:
    """All of it.

    Args:
        machine: what there is.
        names: of the devices to prove; empty for all that compute layers.
        model: for the short run.
        note: as in prove().
    """
    chosen = [
        device
        for device in machine.devices
        if (device["name"] in names if names else device["kind"] != "accelerator")
    ]
    return {
        "format": FORMAT,
        "date": date.today().isoformat(),
        "version": version("snapkv-local"),
        "commit": records.package_commit(),
        "machine": records.machine(),
        "build": machine.build,
        "devices": [prove({**device, "memory_free": None}, note) for device in chosen],
        "run": short_run(model, machine.n_gpu_layers("auto"), note),
    }
