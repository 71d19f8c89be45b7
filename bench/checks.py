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

KEPT = Path(__file__).resolve().parent / "kept.py"

_TAIL = 4000  # characters of a program's output that a record keeps
_MIN_JACCARD = 0.97  # of kept sets: the line between right and wrong in the comparison with kvpress

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


def ops_perf(lib: Path, quick: list[str], env: Environment, timeout: float) -> Any:
    """Times of the fused ops and of the stock ops on each device."""
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
    """Kept positions on the device against those on the CPU, with the package's own Llama.

    Args:
        model: GGUF file.
        text: the demo's document is the prompt, else random tokens.
    """
    settings = {
        "path": str(model),
        "n_prompt": 200 if smoke else 2500,
        "room": 256,
        "n_ubatch": 512,
        "n_threads": 1 if smoke else 0,
        "config": {"budget": 96 if smoke else 512, "window": 32},
        "text": text,
        "seed": 1,
    }
    # without the device in sight: else llama.cpp gives it the large matrix products all the same
    sides = {
        "device": (-1, env),
        "cpu": (0, {**env, "CUDA_VISIBLE_DEVICES": ""}),
    }
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for side, (n_gpu_layers, environment) in sides.items():
            file = str(Path(folder) / f"{side}.npy")
            given = {**settings, "n_gpu_layers": n_gpu_layers, "kept_file": file}
            command = [sys.executable, str(KEPT), json.dumps(given)]
            try:
                result = subprocess.run(
                    command, env=environment, capture_output=True, text=True, timeout=timeout
                )
            except subprocess.TimeoutExpired:
                return {"passed": False, "error": f"{side}: stopped after {timeout:.0f} s"}
            if result.returncode != 0:
                return {"passed": False, "error": f"{side}: {result.stderr[-_TAIL:]}"}
            found[side] = np.load(file)
    values = jaccard(found["device"], found["cpu"])
    return {
        "passed": bool(values.mean() >= _MIN_JACCARD),
        "jaccard_mean": float(values.mean()),
        "jaccard_min": float(values.min()),
        "jaccard_by_layer": [round(float(v), 4) for v in values.mean(axis=1)],
        "threshold": _MIN_JACCARD,
        "model": model.name,
        "prompt": "station.txt" if text else "random tokens",
        "settings": {k: v for k, v in settings.items() if k != "path"},
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
    from snapkv_local import models
    from snapkv_local.errors import ModelFileError

    try:
        model, text = models.demo_model(), True
    except ModelFileError:  # where its package is not installed
        model, text = make("tiny" if smoke else "llama32-1b", "q8_0"), False
    env = {**os.environ, **env}
    n, budget = (160, 64) if smoke else (3000, 512)
    quick = ["--quick"] if smoke else []
    exact = ["-n", n, "-u", 64 if smoke else 512, "-b", budget, "-w", 32, "-g", "1,3,0", model]
    return {
        "ops": program(lib, "test-snapkv-ops", "test", *quick, env=env, timeout=left()),
        "ops_perf": ops_perf(lib, quick, env, left()),
        "exact": program(lib, "test-snapkv-exact", *exact, env=env, timeout=left()),
        "kept_sets": kept_sets(model, text, smoke, env, left()),
    }
