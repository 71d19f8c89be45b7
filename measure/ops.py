"""Checks and times the fused ops on a GPU, with tensor cores and without, and writes DIR/ops-DEVICE.json.

    python3 measure/ops.py --lib FOLDER --out DIR                # all of it
    python3 measure/ops.py --lib FOLDER --out DIR cases          # no times
    python3 measure/ops.py --lib FOLDER --out DIR --kernels mma  # as the device takes them

Kernels that need no tensor cores run with --kernels mma, too, where a head size has no others. The
folder has the libraries and the native test programs (measure/gpu.py builds them). What each program
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
PARTS = ("cases", "perf")
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


def cases(lib: Path, out: Path, name: str, device: str) -> dict[str, Any]:
    """Whether all cases of test-snapkv-ops are right, and what it says of them."""
    text = run(lib, out / f"ops-{name}.txt", KERNELS[name], "test", "--device", device)
    lines = text.splitlines()
    device_line = next(line for line in lines if line.startswith(f"{device}: "))
    said = lines[-1]
    return {
        "device": device_line.partition(": ")[2],
        "passed": said.startswith("OK"),
        "cases": said,
    }


def times(lib: Path, out: Path, name: str, device: str) -> list[Any]:
    """Of each op and of ggml's ops, for each shape."""
    found = []
    for dims, group in SHAPES:
        file = out / f"perf-{name}-d{dims}-g{group}.json"
        if not file.exists():
            shape = ["--head-dim", dims, "--group", group, "--json", file]
            run(lib, file.with_suffix(".txt"), KERNELS[name], "perf", "--device", device, *shape)
        found += json.loads(file.read_text())
    return found


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lib", type=Path, required=True, help="folder of the test programs")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--device", default="CUDA0", help="its name in ggml")
    parser.add_argument("--commit", help="of the libraries, where this tree has no git")
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all")
    args = parser.parse_args(argv)
    parts = args.parts or PARTS
    if unknown := set(parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    args.out.mkdir(parents=True, exist_ok=True)
    kernels: dict[str, dict[str, Any]] = {}
    for name in args.kernels:
        where = (args.lib, args.out, name, args.device)
        kernels[name] = cases(*where)
        if "perf" in parts:
            kernels[name]["perf"] = times(*where)
    device = kernels[args.kernels[0]]["device"]
    record = {
        "format": records.FORMAT,
        "date": date.today().isoformat(),
        "command": " ".join(
            ["python3 measure/ops.py --lib build/gpu/bin --out DIR", *chosen(args)]
        ),
        "commit": args.commit or records.commit(ROOT),
        "device": {"name": device},
        "kernels": kernels,
    }
    path = args.out / f"ops-{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(path)
    return 0 if all(found["passed"] for found in kernels.values()) else 1


def chosen(args: argparse.Namespace) -> list[str]:
    """What of the command line says that not all was asked for."""
    of = ["--kernels", *args.kernels] if args.kernels != list(KERNELS) else []
    return [*args.parts, *of]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
