"""Whether the device computes what it should, before anything is timed on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dequantize import dequantized

KEPT = Path(__file__).resolve().parent / "kept.py"
TURNS = Path(__file__).resolve().parent / "turns.py"

_TAIL = 4000  # characters of a program's output that a record keeps
_MAX_DIFFERENCE = 1e-3  # of logits, as a share of the largest
_MIN_JACCARD = 0.99  # mean, of kept sets that only ties and the order of sums tell apart

Environment = dict[str, str]


def program(lib: Path, name: str, *args: object, env: Environment, timeout: float) -> Any:
    """Run a native test program from the folder of the libraries; what became of it."""
    path = lib / name
    if not path.exists():
        return {"passed": None, "error": f"{path} is not built"}
    command = [str(path), *map(str, args)]
    try:
        result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"passed": False, "error": f"stopped after {timeout:.0f} s"}
    found: dict[str, Any] = {"passed": result.returncode == 0, "rc": result.returncode}
    lines = result.stdout.splitlines()
    found["json"] = [json.loads(line) for line in lines if line.startswith(("{", "["))]
    text = result.stdout if result.returncode == 0 else result.stdout + result.stderr
    if not found["json"] or result.returncode != 0:
        found["output"] = text[-_TAIL:]
    return found


def worker(
    script: Path, settings: dict[str, Any], env: Environment, timeout: float
) -> tuple[str, str]:
    """Run a script in a process of its own; what it printed, and why it failed, "" if it did not."""
    command = [sys.executable, str(script), json.dumps(settings)]
    try:
        result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return "", f"stopped after {timeout:.0f} s"
    return result.stdout, "" if result.returncode == 0 else result.stderr[-_TAIL:] or "it failed"


def ops_perf(lib: Path, quick: list[str], env: Environment, timeout: float) -> Any:
    """Times of the fused ops and of ggml's ops on each device."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "perf.json"
        found = program(
            lib, "test-snapkv-ops", "perf", "--json", file, *quick, env=env, timeout=timeout
        )
        if file.exists():
            found["json"] = json.loads(file.read_text())
            found.pop("output", None)
    return found


def kept_sets(model: Path, text: bool, smoke: bool, env: Environment, timeout: float) -> Any:
    """Kept positions on the device, with the package's own Llama.

    Against the reference in float64 from the queries and keys that the device has scored; against
    the CPU with the model's weights in f32; and, told but not judged, against the CPU with the model
    as it is: quantized products round activations, and each backend in its own way.

    Args:
        model: GGUF file.
        text: the demo's document is the prompt, else random tokens.
    """
    settings = {
        "n_prompt": 200 if smoke else 2500,
        "decode_cells": 256,
        "n_ubatch": 512,
        "n_threads": 1 if smoke else 0,
        "config": {"budget": 96 if smoke else 512, "window_size": 32},
        "text": text,
        "seed": 1,
    }
    # without the device in sight: else llama.cpp gives it the large matrix products all the same
    sides = {
        "device": (-1, {**env, "NVIDIA_TF32_OVERRIDE": "0"}),  # f32 means f32
        "cpu": (0, {**env, "CUDA_VISIBLE_DEVICES": ""}),
    }
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        in_f32 = Path(folder) / "f32.gguf"
        dequantized(model, in_f32)
        for weights, path in (("f32", in_f32), ("quantized", model)):
            for side, (n_gpu_layers, environment) in sides.items():
                file = str(Path(folder) / f"{weights}-{side}.npz")
                given = {**settings, "path": str(path), "n_gpu_layers": n_gpu_layers}
                _, error = worker(KEPT, {**given, "kept_file": file}, environment, timeout)
                if error:
                    return {"passed": False, "error": f"{weights}, {side}: {error}"}
                found[weights, side] = dict(np.load(file))
    device = found["quantized", "device"]
    same_input = agreement(device["kept"], device["expected"])
    f32 = agreement(found["f32", "device"]["kept"], found["f32", "cpu"]["kept"])
    return {
        "passed": min(same_input["jaccard_mean"], f32["jaccard_mean"]) >= _MIN_JACCARD,
        "same_input": same_input,
        "f32_weights": f32,
        "threshold": _MIN_JACCARD,
        "quantized_weights": agreement(device["kept"], found["quantized", "cpu"]["kept"]),
        "model": model.name,
        "prompt": "station.txt" if text else "random tokens",
        "settings": settings,
    }


def later_turns(model: Path, smoke: bool, env: Environment, timeout: float) -> Any:
    """Turns from the vault and beyond the cells, and sessions, against prefills anew (turns.py)."""
    settings = {
        "path": str(model),
        "n_prompt": 256 if smoke else 4096,
        "budget": 96 if smoke else 512,
        "n_ubatch": 64 if smoke else 512,
        "n_gpu_layers": -1,
        "n_threads": 1 if smoke else 0,
    }
    output, error = worker(TURNS, settings, env, timeout)
    if error:
        return {"passed": False, "error": error}
    found = json.loads(output)
    equal = max(found["vault"], found["extend"]) <= _MAX_DIFFERENCE
    passed = equal and found["vault_jaccard"] >= _MIN_JACCARD and found["session"]
    return {"passed": passed, **found, "model": model.name, "settings": settings}


def agreement(a: Any, b: Any) -> dict[str, Any]:
    """How far kept sets agree, of [n_layer, n_head_kv, n_kept] each."""
    values = jaccard(a, b)
    return {
        "jaccard_mean": float(values.mean()),
        "jaccard_min": float(values.min()),
        "jaccard_by_layer": [round(float(v), 4) for v in values.mean(axis=1)],
    }


def jaccard(a: Any, b: Any) -> Any:
    """[n_layer, n_head_kv] shares of common positions, of [n_layer, n_head_kv, n_kept] each."""
    return np.array(
        [
            [
                len(np.intersect1d(x, y)) / len(np.union1d(x, y))
                for x, y in zip(layer_a, layer_b, strict=True)
            ]
            for layer_a, layer_b in zip(a, b, strict=True)
        ]
    )


def all_checks(
    lib: Path,
    make: Callable[[str, str], Path],
    smoke: bool,
    env: Environment,
    left: Callable[[], float],
) -> dict[str, Any]:
    """Every check, each within the time that is left.

    Args:
        lib: folder of the libraries and test programs.
        make: the file of a made model by shape and type.
        left: seconds.
    """
    from snapkv_local.errors import ModelFileError
    from snapkv_local.models.resolve import demo_model, needle_model

    try:
        model, text = needle_model() if smoke else demo_model(), True
    except ModelFileError:  # where the demo's package is not installed
        model, text = make("llama32-1b", "q8_0"), False
    env = {**os.environ, **env}
    n, budget = (160, 64) if smoke else (3000, 512)
    quick = ["--quick"] if smoke else []
    exact = ["-n", n, "-u", 64 if smoke else 512, "-b", budget, "-w", 32, "-g", "1,3,0", model]
    return {
        "ops": program(lib, "test-snapkv-ops", "test", *quick, env=env, timeout=left()),
        "ops_perf": ops_perf(lib, quick, env, left()),
        "exact": program(lib, "test-snapkv-exact", *exact, env=env, timeout=left()),
        "kept_sets": kept_sets(model, text, smoke, env, left()),
        "later_turns": later_turns(model, smoke, env, left()),
    }
