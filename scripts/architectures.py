"""Check every architecture that a synthetic model can be built of, and write docs/architectures.md.

    scripts/architectures.py BIN            # BIN: folder of make-arch-models and test-snapkv-exact
    scripts/architectures.py BIN --check    # do not write, fail if the table would change

The models are tiny and have random weights; make-arch-models builds them, with upstream's test and,
where that builds none, without; our test runs them. A supported one must be exact (layer-group
prefill against llama_decode() with equal chunks, difference 0, and so the states of recurrent
layers), and every other one must be refused with its reason.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs" / "architectures.md"

HEADER = """\
# Model architectures

Written by `scripts/architectures.py`, from the synthetic models that llama.cpp's own tests can
build, and from our own of what they leave out (random weights, a few layers).

- **Exact** are models whose logits of the last token after layer-group prefill equal those of
  `llama_decode()` with equal chunks, difference 0, for every G tried.
- **cached**: layers with full attention that have a KV cache, which is scored and evicted.
  Sliding-window layers are left alone.
- **state exact**: of models with recurrent layers, the states of all layers after the prefill equal
  those after `llama_decode()`, byte for byte. [Limits](limits.md#hybrid-models) says what they cannot do.
- **ops**: what scores and evicts on the CPU, our fused ops or ops of ggml. The latter give the same
  rows and take longer.

"""


def make_models(binaries: Path, folder: Path) -> None:
    """Write the GGUF files, one a model."""
    run([binaries / "make-arch-models", "-s", "1", "-o", folder])


def sweep(binaries: Path, folder: Path) -> list[dict[str, Any]]:
    """One record a model in the folder, as test-snapkv-exact prints it.

    Raises:
        RuntimeError: with what failed.
    """
    models = sorted(folder.glob("*.gguf"))
    if not models:
        raise RuntimeError("make-arch-models wrote no model")
    options = ["-n", "200", "-u", "64", "-w", "8", "-g", "1,2,0"]
    output = run([binaries / "test-snapkv-exact", *options, *models])
    records = [json.loads(line) for line in output.splitlines()]
    if len(records) != len(models):
        raise RuntimeError(f"{len(models)} models, but {len(records)} results")
    return records


def run(command: list[Any]) -> str:
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False
    )
    # test-snapkv-exact exits with 1 where a model is not exact; its record says which
    if result.returncode not in (0, 1):
        raise RuntimeError(f"{command[0]} ended with {result.returncode}: {result.stderr[-2000:]}")
    return result.stdout


def problems(records: list[dict[str, Any]]) -> list[str]:
    """What must not be: a supported model that is not exact, a refusal without a reason."""
    found = []
    for r in records:
        if r.get("error"):
            found.append(f"{r['model']}: {r['error']}")
        elif r["supported"] and not r["exact"]:
            found.append(f"{r['model']}: differs: {r['runs']}")
        elif not r["supported"] and not r["reason"]:
            found.append(f"{r['model']}: refused without a reason")
    return found


def table(records: list[dict[str, Any]]) -> str:
    exact = [r for r in records if r["supported"]]
    refused = [r for r in records if not r["supported"]]
    lines = [
        f"## Supported and exact: {len(exact)}\n",
        "| model | layers | cached | state exact | ops |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {name(r)} | {r['layers']} | {r['cached']} | {state(r)} | {ops(r)} |" for r in exact
    ]
    lines += [
        f"\n## Refused: {len(refused)}\n",
        "| model | why, and what it would take |",
        "|---|---|",
    ]
    lines += [f"| {name(r)} | {r['reason']} |" for r in refused]
    return HEADER + "\n".join(lines) + "\n"


def state(record: dict[str, Any]) -> str:
    """Of recurrent layers; nothing for a model that has none."""
    if record["state_bytes"] == 0:
        return ""
    return "no" if any(run["state_diff"] for run in record["runs"]) else "yes"


def ops(record: dict[str, Any]) -> str:
    """What has scored and evicted the cached layers."""
    shares = {run["fused"] for run in record["runs"]}
    return {1.0: "fused", 0.0: "ggml"}.get(shares.pop(), "both") if len(shares) == 1 else "both"


def name(record: dict[str, Any]) -> str:
    return str(record["model"]).removesuffix(".gguf")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binaries", type=Path)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        make_models(args.binaries, Path(folder))
        records = sweep(args.binaries, Path(folder))
    for problem in problems(records):
        print(problem, file=sys.stderr)
    if problems(records):
        return 1
    text = table(records)
    if args.check:
        if not TABLE.is_file() or TABLE.read_text() != text:
            print(f"{TABLE} is not up to date: run {parser.prog} without --check", file=sys.stderr)
            return 1
    else:
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(text)
    n = sum(r["supported"] for r in records)
    print(
        f"{len(records)} models: {n} supported and exact, {len(records) - n} refused with a reason"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
