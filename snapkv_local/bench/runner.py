"""Measures cases, each run in a process of its own, and keeps the record."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from snapkv_local.bench import record as records
from snapkv_local.bench.matrix import Case, Model
from snapkv_local.bench.process import work
from snapkv_local.bench.summary import summarize
from snapkv_local.errors import ConfigError, NativeError

Record = dict[str, Any]


@dataclass(frozen=True)
class Machine:
    """What the runs are measured on.

    Attributes:
        build: of the native library.
        devices: ggml's, as backends.Device has them.
    """

    build: dict[str, Any]
    devices: list[dict[str, Any]]

    @classmethod
    def describe(cls) -> Machine:
        """Ask a process of its own: a GPU that was looked at keeps some memory.

        Raises:
            NativeError: the native library does not load.
        """
        found, error = work("describe")
        if found is None:
            raise NativeError("the native library", error, "`snapkv-local doctor` says more")
        return cls(**found)

    @property
    def gpus(self) -> list[dict[str, Any]]:
        """The devices that layers can be offloaded to."""
        return [device for device in self.devices if device["kind"] in ("gpu", "igpu")]

    def n_gpu_layers(self, wanted: int | str) -> int:
        """Layers on GPUs, -1 for all.

        Args:
            wanted: a number, "all", or "auto": all if there is a GPU.

        Raises:
            ConfigError: a GPU is wanted and there is none.
        """
        if wanted == "auto":
            return -1 if self.gpus else 0
        if wanted != 0 and not self.gpus:
            raise ConfigError(
                f"gpu-layers {wanted}",
                "this build finds no GPU",
                "leave it out; `snapkv-local doctor` lists the devices",
            )
        return -1 if wanted == "all" else int(wanted)

    def device(self, n_gpu_layers: int) -> dict[str, Any]:
        """What computes: name, kind, backend, and memory in bytes."""
        if n_gpu_layers == 0:
            machine = records.machine()
            return {
                "name": f"{machine['cpu']}, {machine['cores']} cores",
                "kind": "cpu",
                "backend": "CPU",
                "memory_total": machine["ram_total"],
            }
        first, n = self.gpus[0], len(self.gpus)
        return {
            "name": first["description"] if n == 1 else f"{n} x {first['description']}",
            "kind": first["kind"],
            "backend": first["backend"],
            "memory_total": sum(gpu["memory_total"] for gpu in self.gpus),
        }


def start_record(machine: Machine, model: Model, n_gpu_layers: int, note: str | None) -> Record:
    """A record without runs."""
    return {
        "format": records.FORMAT,
        "date": date.today().isoformat(),
        "version": version("snapkv-local"),
        "commit": records.package_commit(),
        "machine": records.machine(),
        "device": machine.device(n_gpu_layers),
        "devices": [d | {"memory_free": None} for d in machine.devices],
        "build": machine.build,
        **({"note": note} if note else {}),
        "models": {f"{model.name}-{model.weights}": model.to_dict()},
        "summary": {},
        "runs": [],
        "failures": [],
    }


def measure(
    record: Record,
    model: Model,
    cases: list[Case],
    repeat: int,
    *,
    out: Path | None,
    before: Callable[[Case, int], None],
    after: Callable[[Case, int, dict[str, Any] | None, str], None],
) -> None:
    """Run every case `repeat` times, in rounds, so that what disturbs one round disturbs all.

    A case that failed is not run again.

    Args:
        record: gets the runs, failures and summary.
        model: of all cases.
        repeat: processes of each case.
        out: file that the record is written to after each run, if any.
        before: called with the case and its turn before a run.
        after: called with the case, its turn, and the result, or None and an error.
    """
    failed: set[str] = set()
    for turn in range(repeat):
        for case in cases:
            if case.name in failed:
                continue
            before(case, turn)
            started = time.monotonic()
            result, error = work("run", case.settings.to_dict())
            seconds = time.monotonic() - started
            stamp = {
                "case": case.name,
                "label": case.label,
                "against": case.against,
                "commit": record["commit"],
                "date": record["date"],
                "settings": _settings(case, model),
            }
            if result is None:
                failed.add(case.name)
                record["failures"].append({**stamp, "error": error})
            else:
                record["runs"].append({**stamp, "seconds_wall": round(seconds, 2), **result})
            record["summary"] = summarize(record["runs"])
            if out is not None:
                records.write(out, record)
            after(case, turn, result, error)


def _settings(case: Case, model: Model) -> dict[str, Any]:
    """As measure/gpu.py writes them: the model's name and type instead of its path."""
    settings = case.settings.to_dict()
    del settings["path"]
    return {"model": model.name, "weights": model.weights, **settings}
