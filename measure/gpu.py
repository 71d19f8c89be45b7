"""Builds with CUDA, checks and measures on a GPU machine, and writes a record.

    python3 measure/gpu.py --out DIR                          # all of it
    python3 measure/gpu.py --out DIR build checks             # steps
    python3 measure/gpu.py --out DIR 'decode-8b-*' memory     # steps and cases of measure/cases.py
    python3 measure/gpu.py --out DIR --minutes 9 prefill      # what fits; the rest is named
    python3 measure/gpu.py --out DIR --smoke                  # a tiny model: does the script run?

Without a GPU, --smoke runs on the CPU.

The record is DIR/gpu-DEVICE.json. It starts from the one there, or from that in results/, and is
written after every run, so that it is whole whenever the machine goes away. A case that runs again
replaces its runs. Needed are Python with the package's dependencies and, to build, cmake, ninja and
nvcc; no network if SNAPKV_LLAMA_CPP_SOURCE names a llama.cpp tree.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]  # the package as it is here, installed or not

import cases  # noqa: E402
import checks  # noqa: E402
import cuda_build  # noqa: E402
import device  # noqa: E402
from figures import table  # noqa: E402
from snapkv_local.bench import record as records  # noqa: E402
from snapkv_local.bench.make_model import make_model  # noqa: E402
from snapkv_local.bench.nvml import Gpus  # noqa: E402
from snapkv_local.bench.process import work  # noqa: E402
from snapkv_local.bench.shapes import SHAPES  # noqa: E402
from snapkv_local.bench.summary import summarize  # noqa: E402
from snapkv_local.errors import LibraryError  # noqa: E402
from snapkv_local.native import library  # noqa: E402

BUILD = ROOT / "build" / "gpu"
MODELS = ROOT / "build" / "models"
PARTS = ("build", "models", "checks")

_PATIENCE = 4  # times its estimate, after which a run is stopped
_CHECK_SECONDS = 240  # that one check may take


class TimeBox:
    """Minutes that may be used."""

    def __init__(self, minutes: float | None) -> None:
        self._end = None if minutes is None else time.monotonic() + 60 * minutes

    def left(self) -> float:
        """Seconds."""
        return float("inf") if self._end is None else max(self._end - time.monotonic(), 0.0)

    def timeout(self, most: float = 3600) -> float:
        """Seconds that a process may take: a little before the end, so that its end is recorded."""
        return max(min(self.left() - 2, most), 1)


class Bench:
    """One call of the script.

    Args:
        kind: of the record, which its name begins with.
    """

    def __init__(self, args: argparse.Namespace, kind: str = "gpu") -> None:
        self.smoke: bool = args.smoke
        self.out: Path = args.out
        self.models: Path = args.models
        self.repeats: int | None = args.repeats
        self.box = TimeBox(args.minutes)
        self.commit: str = args.commit or records.commit(ROOT)
        self.device = device.describe()
        on_cpu = self.smoke and not self.device
        self.lib: Path = library.find() if on_cpu else BUILD / "bin"
        if args.lib is not None:
            self.lib = args.lib.resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        name = self.device.get("name", "unknown")
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        self.path = self.out / ("smoke.json" if self.smoke else f"{kind}-{slug}.json")
        self.record = self._start(self.path, ROOT / "results" / self.path.name)

    def _start(self, *places: Path) -> dict[str, Any]:
        found: dict[str, Any] = {"runs": [], "failures": [], "checks": {}, "models": {}}
        for place in places:
            if place.exists():
                found = json.loads(place.read_text(encoding="utf-8"))
                records.check_format(found, str(place))
                break
        return {
            "format": records.FORMAT,
            **found,
            "date": date.today().isoformat(),
            "commit": self.commit,
            "machine": records.machine(),
            "device": self.device,
            "left_out": [],
        }

    def save(self) -> None:
        self.record["summary"] = summarize(self.record["runs"])
        order = (
            "format",
            "date",
            "commit",
            "machine",
            "device",
            "build",
            "models",
            "checks",
            "summary",
        )
        first = {key: self.record[key] for key in order if key in self.record}
        records.write(self.path, {**first, **self.record})

    def forget(self, what: str, name: str) -> None:
        self.record[what] = [entry for entry in self.record[what] if entry["case"] != name]

    def environment(self) -> dict[str, str]:
        """Of the processes that measure."""
        ours = (library.ENV_LLAMA_CPP, library.ENV_MTMD)  # the workers set them, from the one below
        inherited = {key: value for key, value in os.environ.items() if key not in ours}
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return {
            **inherited,
            "PYTHONPATH": path,
            library.ENV_LIB: str(self.lib),
            # one GPU, and the one that device.py looks at
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0"),
        }

    def build(self) -> None:
        if cuda_build.is_built(self.lib):
            say(f"build: {self.lib} has libraries")
            self.record["build"] = cuda_build.describe(self.lib)
            return
        if self.lib != BUILD / "bin":
            raise SystemExit(f"error: --lib {self.lib} has no llama library")
        started = time.monotonic()
        capability = self.device.get("compute_cap")
        if capability is None:
            raise SystemExit("error: nvidia-smi finds no GPU to build for; --smoke needs none")
        say(f"build: for compute capability {capability}, log in {self.out / 'build.log'}")
        try:
            cuda_build.build(BUILD, capability, self.out / "build.log", self.box.timeout())
        except RuntimeError as e:
            self.record["failures"].append(self.failure("build", str(e)))
            self.save()
            raise SystemExit(f"error: {e}") from e
        seconds = time.monotonic() - started
        say(f"build: {seconds:.0f} s")
        self.forget("failures", "build")
        self.record["build"] = {"seconds": round(seconds, 1), **cuda_build.describe(self.lib)}
        self.save()

    def model(self, shape: str, kind: str) -> Path:
        """The file of a made model, which is written if it is not there."""
        self.models.mkdir(parents=True, exist_ok=True)
        path = self.models / f"{shape}-{kind}.gguf"
        if not path.exists():
            made = make_model(SHAPES[shape], kind, path, name=f"{shape} shape, random weights")
            say(f"model: {path.name}, {made.seconds:.1f} s")
            self.record["models"][path.stem] = {**made.to_dict(), "path": path.name}
        return path

    def check(self) -> None:
        found = checks.all_checks(
            self.lib,
            self.model,
            self.smoke,
            self.environment(),
            lambda: self.box.timeout(_CHECK_SECONDS),
        )
        for name, result in found.items():
            passed = {True: "passed", False: "FAILED", None: "not run"}[result["passed"]]
            say(f"check {name}: {passed} {result.get('error', '')}")
        self.record["checks"] = {"commit": self.commit, "date": self.record["date"], **found}
        self.save()

    def measure(self, chosen: list[cases.Case]) -> None:
        """Runs in rounds: each case once, then again what is to be repeated, side by side."""
        seen: set[str] = set()
        took: dict[str, float] = {}
        repeats = {case.name: self.repeats or case.repeats for case in chosen}
        for turn in range(max(repeats.values(), default=0)):
            for case in chosen:
                if turn >= repeats[case.name]:
                    continue
                needed = max(case.seconds, took.get(case.name, 0.0))
                if self.box.left() < needed:
                    reason = f"takes {needed:.0f} s, and {self.box.left():.0f} s are left"
                    self.record["left_out"].append(
                        {"case": case.name, "turn": turn, "reason": reason}
                    )
                    say(f"{case.name}: left out: {reason}")
                    continue
                started = time.monotonic()
                result, error = self.run(case)
                took[case.name] = time.monotonic() - started
                if case.name not in seen:
                    seen.add(case.name)
                    self.forget("runs", case.name)
                    self.forget("failures", case.name)
                if result is None:
                    self.record["failures"].append(self.failure(case.name, error))
                    say(f"{case.name}: FAILED: {error.strip().splitlines()[-1:]}")
                else:
                    self.record["runs"].append(
                        {**self.stamp(case), "seconds_wall": round(took[case.name], 2), **result}
                    )
                    say(f"{case.name}: {took[case.name]:.0f} s")
                self.save()

    def stamp(self, case: cases.Case) -> dict[str, Any]:
        return {
            "case": case.name,
            "label": case.label,
            "against": case.against,
            "commit": self.commit,
            "date": self.record["date"],
            "settings": case.settings(),
        }

    def failure(self, name: str, error: str) -> dict[str, Any]:
        return {"case": name, "commit": self.commit, "date": self.record["date"], "error": error}

    def run(self, case: cases.Case) -> tuple[dict[str, Any] | None, str]:
        """What the worker found, or why it did not."""
        settings = {**case.settings(), "path": str(self.model(case.model, case.weights))}
        timeout = self.box.timeout(max(_PATIENCE * case.seconds, 120))
        environment = self.environment()
        try:
            with device.held(case.leave_free, environment) as held:
                result, error = work("run", settings, environment=environment, timeout=timeout)
        except OSError as e:  # of the process that holds memory
            return None, str(e)
        return (None if result is None else {**held, **result}), error


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def setting(text: str) -> tuple[str, Any]:
    """KEY=VALUE, the value a number where it looks like one."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, int(value) if value.isdecimal() else value


def parse(
    arguments: list[str] | None,
    table: tuple[cases.Case, ...] = cases.CASES,
    description: str | None = __doc__,
) -> argparse.Namespace:
    """The options of a script that measures cases of a table."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", help=f"{', '.join(PARTS)}, or steps and cases")
    parser.add_argument("--out", type=Path, required=True, help="folder for the record and logs")
    parser.add_argument("--lib", type=Path, help="folder of libraries that are built already")
    parser.add_argument("--models", type=Path, default=MODELS, help="folder of the made models")
    parser.add_argument("--minutes", type=float, help="time box")
    parser.add_argument("--repeats", type=int, help="processes of each case")
    parser.add_argument("--commit", help="for the record, where there is no git")
    parser.add_argument(
        "--set", type=setting, action="append", default=[], help="KEY=VALUE of SnapKVConfig"
    )
    parser.add_argument("--smoke", action="store_true", help="a tiny model and short prompts")
    args = parser.parse_args(arguments)
    args.what = args.what or [*PARTS, *cases.steps_of(table)]
    try:
        args.cases = cases.select([name for name in args.what if name not in PARTS], table)
    except ValueError as e:
        parser.error(str(e))
    args.cases = [cases.with_config(case, dict(args.set)) for case in args.cases]
    if args.smoke:
        args.cases = [cases.smoke(case, bool(device.describe())) for case in args.cases]
    return args


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    try:
        Gpus.open()  # what it needs is missing now, or after half an hour
    except LibraryError as e:
        raise SystemExit(f"error: {e}") from e
    bench = Bench(args)
    bench.build()
    if "models" in args.what:
        for case in args.cases:
            bench.model(case.model, case.weights)
    if "checks" in args.what:
        bench.check()
    bench.measure(args.cases)
    bench.save()
    print(table(bench.record))
    failed = [name for name, check in bench.record["checks"].items() if check_failed(check)]
    return 1 if bench.record["failures"] or failed else 0


def check_failed(check: Any) -> bool:
    return isinstance(check, dict) and check["passed"] is False


if __name__ == "__main__":
    sys.exit(main())
