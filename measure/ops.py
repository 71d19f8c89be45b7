"""Checks and times the fused ops on a GPU, with tensor cores and without, and writes DIR/ops-DEVICE.json.

    python3 measure/ops.py --lib FOLDER --out DIR

The folder has the libraries and the native test programs (measure/gpu.py builds them). What each program
printed is put into DIR, too; what is there already is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]  # the package as it is here, installed or not

from snapkv_local.bench import record as records  # noqa: E402

# kernels of CUDA, and the variables of the environment that choose them
KERNELS: dict[str, dict[str, str]] = {"mma": {}, "portable": {"SNAPKV_TEST_NO_MMA": "1"}}
SHAPES = ((128, 4), (64, 1), (128, 8))  # dims of a head, query heads of a KV head


def run(lib: Path, file: Path, env: dict[str, str], *arguments: object) -> str:
    """What test-snapkv-ops prints, from the file of an earlier run if there is one."""
    if not file.exists():
        command = [str(lib / "test-snapkv-ops"), *map(str, arguments)]
        result = subprocess.run(
            command,
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        file.write_text(result.stdout)
    return file.read_text()


def measured(lib: Path, out: Path, name: str, device: str) -> dict[str, Any]:
    """Cases and times of one kind of kernels."""
    env = KERNELS[name]
    lines = run(lib, out / f"ops-{name}.txt", env, "test", "--device", device).splitlines()
    last = lines[-1] if lines else ""
    found: dict[str, Any] = {"passed": last.startswith("OK"), "cases": last, "perf": []}
    for dims, group in SHAPES:
        file = out / f"perf-{name}-d{dims}-g{group}.json"
        if not file.exists():
            shape = ["--head-dim", dims, "--group", group]
            log = out / f"perf-{name}-d{dims}-g{group}.txt"
            run(lib, log, env, "perf", "--device", device, *shape, "--json", file)
        found["perf"] += json.loads(file.read_text())
    return found


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lib", type=Path, required=True, help="folder of the test programs")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--device", default="CUDA0", help="its name in ggml")
    parser.add_argument("--commit", help="of the libraries, where this tree has no git")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    kernels = {name: measured(args.lib, args.out, name, args.device) for name in KERNELS}
    name = kernels["mma"]["perf"][0]["description"]
    record = {
        "format": records.FORMAT,
        "date": date.today().isoformat(),
        "command": "python3 measure/ops.py --lib build/gpu/bin --out DIR",
        "commit": args.commit or records.commit(ROOT),
        "device": {"name": name},
        "kernels": kernels,
    }
    path = args.out / f"ops-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(path)
    return 0 if all(found["passed"] for found in kernels.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
