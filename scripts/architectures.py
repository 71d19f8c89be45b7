"""Check every architecture that a synthetic model can be built of, and write docs/architectures.md.

    scripts/architectures.py BIN            # BIN: folder of make-arch-models and test-snapkv-exact
    scripts/architectures.py BIN --check    # do not write, fail if the table would change
    scripts/architectures.py BIN --device --jobs 12 --out sweep.txt    # on the GPU that is there

The models are tiny and have random weights; make-arch-models builds them, with upstream's test and,
where that builds none, without; our test runs them. A supported one must be exact (layer-group
prefill against llama_decode() with equal chunks, difference 0, and so the states of recurrent
layers), and every other one must be refused with its reason.

--device writes no table. It tries models that nobody has proven there, too, with longer prompts, two
sequences, and KV in f16 and in q8_0, each in a process of its own: one that ends is told and ends no
other. Its last line counts what was exact.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
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
    options = ["-n", "200", "-u", "64", "-w", "8", "-g", "1,2,0", "-j", "1"]
    output = run([binaries / "test-snapkv-exact", *options, *models])
    records = [json.loads(line) for line in output.splitlines()]
    if len(records) != len(models):
        raise RuntimeError(f"{len(models)} models, but {len(records)} results")
    return records


_LEARNED_POSITIONS = ("gpt2-", "starcoder-")  # of which there are 256
_SECONDS = 60  # that a model may take on a device


def on_device(binaries: Path, model: Path, kv_type: str) -> dict[str, Any]:
    """What test-snapkv-exact prints of a model, or as its error how the process ended."""
    short = model.name.startswith(_LEARNED_POSITIONS)
    length = ["-n", "200", "-u", "64"] if short else ["-n", "1200", "-u", "256"]
    options = [*length, "-g", "1,2,0", "-s", "2", "-t", kv_type]
    command = [str(binaries / "test-snapkv-exact"), *options, str(model)]
    environment = {**os.environ, "SNAPKV_UNPROVEN": "1", "OMP_NUM_THREADS": "1"}
    named = {"model": model.name, "kv_type": kv_type}
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        return {**named, "error": f"stopped after {_SECONDS} s"}
    try:
        return {**named, **json.loads(result.stdout)}
    except json.JSONDecodeError:
        said = [line for line in result.stderr.splitlines() if "ASSERT" in line or "rror" in line]
        return {**named, "error": f"ended with {result.returncode}: {' '.join(said)[:300]}"}


def sweep_device(binaries: Path, models: list[Path], jobs: int, out: Path | None) -> int:
    """Prints a line for each run that is wrong, writes all to a file; 1 if one is wrong."""
    runs = [(model, kv_type) for model in models for kv_type in ("f16", "q8_0")]
    with ThreadPoolExecutor(jobs) as pool:
        records = list(pool.map(lambda run: on_device(binaries, *run), runs))
    counts: Counter[str] = Counter()
    lines = []
    for record in records:
        wrong = problems([record])
        kind = "refused" if not wrong and not record["supported"] else "exact"
        kind = "wrong" if wrong else kind
        counts[kind] += 1
        lines.append(f"{kind} {json.dumps(record)}")
        for problem in wrong:
            print(f"{record['kv_type']} {problem}")
    lines.append(f"{len(records)} runs: {dict(counts)}")
    if out is not None:
        out.write_text("\n".join(lines) + "\n")
    print(lines[-1])
    return 1 if counts["wrong"] else 0


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
    parser.add_argument("--device", action="store_true", help="see above")
    parser.add_argument("--jobs", type=int, default=1, help="with --device: processes at a time")
    parser.add_argument("--only", default="*", help="with --device: a pattern of models' names")
    parser.add_argument("--models", type=Path, help="with --device: a folder that has them")
    parser.add_argument("--out", type=Path, help="with --device: a file for what was found")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        if args.models is None:
            make_models(args.binaries, Path(folder))
        if args.device:
            found = sorted((args.models or Path(folder)).glob("*.gguf"))
            models = [path for path in found if fnmatch.fnmatchcase(path.stem, args.only)]
            return sweep_device(args.binaries, models, args.jobs, args.out)
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
