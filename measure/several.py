"""What a machine with several GPUs does, and write DIR/several-DEVICE.json.

    python3 measure/several.py --lib FOLDER --out DIR                  # all parts, in this order
    python3 measure/several.py --lib FOLDER --out DIR exact documents

    exact      are logits those of llama_decode() with layers on all GPUs, by halves, unequally, on one,
               and partly in host memory?
    speed      prompts of several lengths and 64 tokens after each, beside the full cache
    documents  are a vault's and a document's answers those of one GPU?
    sweep      as exact, of small models of all architectures, whose layers lie on all GPUs
    single     as speed, the longest prompt on the first GPU alone; only if it is asked for

The folder has the CUDA libraries and the native test programs (measure/gpu.py builds them). Models are
made. The record is written after each part; where one is measured again, the rest stays.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]  # the package as it is here, installed or not

import cases  # noqa: E402
import device  # noqa: E402
from snapkv_local.bench import record as records  # noqa: E402
from snapkv_local.bench.make_model import make_model  # noqa: E402
from snapkv_local.bench.process import work  # noqa: E402
from snapkv_local.bench.shapes import SHAPES  # noqa: E402
from snapkv_local.native import library  # noqa: E402

# shape, types of the KV cache, and what is said of GPUs
EXACT = (
    ("llama32-1b", "f16", ()),
    ("llama32-1b", "q8_0", ("-x", "3,1")),
    ("llama32-1b", "f16", ("-m", "1")),
    ("llama32-1b", "f16", ("-l", "9")),
    ("gemma3-4b", "f16", ("-x", "1,3")),
    ("qwen35-9b", "f16", ()),
    ("gpt-oss-20b", "q8_0", ("-x", "3,1")),
)
# layers of a group: one GPU at a time, dealt to all of them by halves and unequally, each where it is
GROUPS = "1,2,6,0"
# thousands of tokens, type of the KV cache, and configuration (None: the full cache); the longest first
_BUDGET = {"budget": 2048}
SPEED: tuple[tuple[int, str, dict[str, Any] | None], ...] = (
    (128, "f16", _BUDGET),
    (128, "f16", None),
    (32, "f16", _BUDGET),
    (32, "f16", None),
    (8, "f16", _BUDGET),
    (8, "f16", None),
    (128, "f16", {**_BUDGET, "layer_group": 8}),
    (128, "q8_0", _BUDGET),
    (128, "q8_0", None),
    (8, "f16", {**_BUDGET, "layer_group": 1}),
    (128, "f16", {**_BUDGET, "layer_group": 1}),
)
SMALL = tuple(("tiny", kv_type, gpus) for _, kv_type, gpus in EXACT[:3])
QUESTIONS = ("In which room does the cooling pump stand?", "Who is the cook?", "When is lunch?")
DOCUMENT = ROOT / "snapkv_local" / "demo" / "station.txt"


class Several:
    """One call of the script."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.lib: Path = args.lib.resolve()
        self.models: Path = args.models
        self.smoke: bool = args.smoke
        found = device.describe()
        slug = re.sub(r"[^a-z0-9]+", "-", found.get("name", "no gpu").lower()).strip("-")
        args.out.mkdir(parents=True, exist_ok=True)
        self.path: Path = args.out / f"several-{slug}.json"
        before = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.record: dict[str, Any] = {
            **before,
            "format": records.FORMAT,
            "date": date.today().isoformat(),
            "command": "python3 measure/several.py --lib build/gpu/bin --out DIR",
            "commit": args.commit or records.commit(ROOT),
            "machine": records.machine(),
            "device": found,
            "n_devices": 1 if self.smoke else self.n_gpus(),
        }

    @staticmethod
    def n_gpus() -> int:
        """GPUs that nvidia-smi lists."""
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True)
        return len(listed.stdout.splitlines())

    def environment(self, only: str | None = None) -> dict[str, str]:
        """Of processes that measure; only: the GPUs that they see."""
        kept = {k: v for k, v in os.environ.items() if k != library.ENV_LLAMA_CPP}
        more = {} if only is None else {"CUDA_VISIBLE_DEVICES": only}
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return {**kept, "PYTHONPATH": path, library.ENV_LIB: str(self.lib), **more}

    def model(self, shape: str) -> Path:
        """The file of a made model, which is written if it is not there."""
        path = self.models / f"{shape}-q4_0.gguf"
        if not path.exists():
            self.models.mkdir(parents=True, exist_ok=True)
            make_model(SHAPES[shape], "q4_0", path, name=f"{shape} shape, random weights")
        return path

    def exact_lines(self, *arguments: object, timeout: float = 120) -> list[dict[str, Any]]:
        """What test-snapkv-exact says, a line a model; its error in the place of a missing line."""
        command = [str(self.lib / "test-snapkv-exact"), *map(str, arguments)]
        try:
            result = subprocess.run(
                command, env=self.environment(), capture_output=True, text=True, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            return [{"error": f"stopped after {timeout:.0f} s"}]
        found = [json.loads(line) for line in result.stdout.splitlines() if line.endswith("}")]
        if not found or result.returncode not in (0, 1):
            found.append({"error": f"ended with {result.returncode}: {result.stderr[-500:]}"})
        return found

    def exact(self) -> list[dict[str, Any]]:
        """Real shapes, in each way of sharing."""
        found = []
        n, ubatch = (820, 100) if self.smoke else (3000, 256)
        for shape, kv_type, gpus in SMALL if self.smoke else EXACT:
            began = time.monotonic()
            lines = self.exact_lines(
                *("-n", n, "-u", ubatch, "-g", GROUPS, "-t", kv_type, *gpus, self.model(shape))
            )
            run = {"shape": shape, "kv_type": kv_type, "options": " ".join(gpus), **lines[-1]}
            found.append({**run, "seconds": round(time.monotonic() - began, 1)})
            say(f"exact {shape} {kv_type} {' '.join(gpus)}: {verdict(lines[-1])}")
            self.keep("exact", found)
        return found

    def sweep(self) -> dict[str, Any]:
        """Small models of all architectures."""
        with tempfile.TemporaryDirectory() as folder:
            make = [str(self.lib / "make-arch-models"), "-s", "1", "-o", f"{folder}/"]
            subprocess.run(make, env=self.environment(), check=True, capture_output=True)
            files = sorted(Path(folder).glob("*.gguf"))[: 3 if self.smoke else None]
            # of two layers and the output, one on the first GPU
            lines = self.exact_lines("-g", "1,0", "-x", "1,3", *files, timeout=240)
        taken = [line for line in lines if line.get("supported")]
        return {
            "models": len(files),
            "supported": len(taken),
            "exact": sum(line.get("exact") is True for line in taken),
            "different": [line for line in taken if line.get("exact") is not True],
            "errors": [line["error"] for line in lines if "error" in line],
        }

    def speed(self) -> list[dict[str, Any]]:
        """Prompts on all GPUs, compressed and with the full cache."""
        return self.timed(SPEED, None, self.record["n_devices"])

    def single(self) -> list[dict[str, Any]]:
        """The longest on one."""
        return self.timed(SPEED[:2], "0", 1)

    def timed(self, runs: Any, only: str | None, gpus: int) -> list[dict[str, Any]]:
        """Runs of the benchmark's worker, on the GPUs that CUDA_VISIBLE_DEVICES names."""
        found: list[dict[str, Any]] = []
        for k, kv_type, config in runs[:2] if self.smoke else runs:
            shape, n_prompt = ("tiny", 2048) if self.smoke else ("llama31-8b", cases._tokens(k))
            budget = {"budget": 256} if self.smoke and config else {}
            settings = {
                **cases.Case(
                    "several",
                    "",
                    shape,
                    n_prompt,
                    config and {**config, **budget},
                    60,
                    kv_type=kv_type,
                    decode_repeats=1,
                ).settings(),
                "path": str(self.model(shape)),
                "n_gpu_layers": 0 if self.smoke else -1,
            }
            result, error = work("run", settings, environment=self.environment(only), timeout=120)
            run = {"gpus": gpus, "shape": shape, "n_prompt": n_prompt, "config": config}
            found.append({**run, "kv_type": kv_type, **(result or {"error": error})})
            say(f"speed, {gpus} GPUs, {k}K {kv_type} {config}: {error or summary(result or {})}")
            self.keep("speed" if only is None else "single", found)
        return found

    def keep(self, part: str, found: Any) -> None:
        """Write the record, with what was found of a part so far."""
        self.record[part] = found
        records.write(self.path, self.record)

    def documents(self) -> dict[str, Any]:
        """Answers about a document that was ingested, and with a vault: on all GPUs, and on one."""
        found: dict[str, Any] = {}
        with tempfile.TemporaryDirectory() as folder:
            for name, only in (("all", None), ("one", "0")):
                environment = self.environment(only)
                book = Path(folder) / f"{name}.snapkv"

                def run(*arguments: object, env: dict[str, str] = environment) -> str:
                    command = [sys.executable, "-m", "snapkv_local", *map(str, arguments)]
                    result = subprocess.run(command, env=env, capture_output=True, text=True)
                    return result.stdout if result.returncode == 0 else result.stderr[-500:]

                small = ("--budget", "256", "--json")
                run("ingest", "needle", "--file", DOCUMENT, "--out", book)
                asked = run("ask", book, *QUESTIONS, *small).splitlines()
                question = ("--prompt", QUESTIONS[0], "--vault", "ram", *small)
                told = run("run", "needle", "--file", DOCUMENT, *question).splitlines()
                found[name] = [answer(line) for line in (*asked, *told)]
        found["same"] = found["all"] == found["one"] and len(found["all"]) > len(QUESTIONS)
        say(f"documents: {found}")
        return found


def answer(line: str) -> str:
    """The text of an answer in JSON, or what was said instead."""
    try:
        return str(json.loads(line).get("text"))
    except ValueError:
        return line


def verdict(line: dict[str, Any]) -> str:
    """A line of test-snapkv-exact in a few words."""
    if "runs" not in line:
        return str(line.get("error") or line.get("reason"))
    return f"differences {[run['max_diff'] for run in line['runs']]}"


def summary(result: dict[str, Any]) -> str:
    """A run of the worker in a few words."""
    names = ("seconds_prefill", "decode_tokens_per_second", "peak_device_growth_each")
    return str({name: result[name] for name in (*names, "peak_device") if name in result})


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parts = ("exact", "speed", "documents", "sweep", "single")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=", ".join(parts))
    parser.add_argument("--lib", type=Path, required=True, help="folder of libraries and programs")
    parser.add_argument("--out", type=Path, required=True, help="folder for the record")
    parser.add_argument("--models", type=Path, default=ROOT / "build" / "models")
    parser.add_argument("--commit", help="for the record, where there is no git")
    parser.add_argument("--smoke", action="store_true", help="small, and without a GPU")
    args = parser.parse_args(arguments)
    if unknown := set(args.parts) - set(parts):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    several = Several(args)
    for part in args.parts or parts[:-1]:
        began = time.monotonic()
        found = getattr(several, part)()
        several.record[f"seconds_{part}"] = round(time.monotonic() - began, 1)
        several.keep(part, found)
        say(f"{part}: {several.record[f'seconds_{part}']} s")
    if "sweep" in several.record:
        say(f"sweep: {several.record['sweep']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
