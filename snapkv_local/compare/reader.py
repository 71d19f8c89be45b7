"""Records of `snapkv-local bench` and measure/gpu.py, as one kind of figures."""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from snapkv_local.bench import record as records
from snapkv_local.bench.summary import values
from snapkv_local.compare.kinds import OtherRecordError, other_kind
from snapkv_local.errors import ConfigError
from snapkv_local.report.units import GIB, MIB

# of PrefillStats, in the order of tables and plots
PARTS = {
    "bytes_kv": "compact KV cache",
    "bytes_kv_group": "full KV of a layer group",
    "bytes_hidden": "hidden state",
    "bytes_weights_lent": "lent weights",
    "bytes_mask": "mask",
    "bytes_compute": "compute buffer",
}


@dataclass(frozen=True)
class Figure:
    """A measured quantity.

    Attributes:
        median: of the values.
        low: the smallest.
        high: the largest.
        n: how many.
    """

    median: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Case:
    """One set of settings on one machine. What was not measured is None.

    Attributes:
        name: in its record.
        model: name of the model.
        weights: type of its matrices.
        cache: "full cache", or how the prompt is compressed.
        details: other settings that are not the usual ones, "" if there are none.
        n_ctx_train: context length of the model's training, in tokens; None if it is not recorded.
        n_prompt: tokens of each sequence's prompt.
        n_runs: processes.
        first_token: seconds from the prompt to the first token.
        prefill: tokens/s.
        decode: tokens/s of one sequence.
        peak: memory, in bytes: of the device where the model is on a GPU, else of the process.
        peak_rss: of the process, in bytes.
        bytes_kept: what the kept rows take after the prefill, all sequences.
        has_room: older records have the whole compact cache as bytes_kept, with its room for new
            tokens.
        bytes_kv_full: what the full cache takes for this prompt.
        parts: bytes by the names in PARTS, during the prefill; empty for the full cache.
        against: name of the case with the full cache that differs in nothing else, if there is one.
        commit: that was measured.
    """

    name: str
    model: str
    weights: str
    cache: str
    details: str
    n_ctx_train: int | None
    n_prompt: int
    n_runs: int
    first_token: Figure | None
    prefill: Figure | None
    decode: Figure | None
    peak: Figure | None
    peak_rss: Figure | None
    bytes_kept: int | None
    has_room: bool
    bytes_kv_full: int | None
    parts: dict[str, int]
    against: str | None
    commit: str

    @property
    def is_full(self) -> bool:
        """Whether nothing was compressed."""
        return not self.parts

    @property
    def series(self) -> str:
        """What stays the same where only the prompt's length changes."""
        return ", ".join(filter(None, [self.cache, self.details]))


@dataclass(frozen=True)
class Record:
    """The measurements of one machine.

    Attributes:
        source: name of the file.
        device: what computed.
        on_gpu: whether `Case.peak` is the device's memory.
        memory: of the device if on_gpu, else of the machine, in bytes; None if it is not known.
        date: of the record.
        version: of snapkv-local, None if it is not known.
        llama_cpp: commit of llama.cpp, None if it is not known.
        build: compiler, system and backend.
        note: of whoever measured.
        cases: in the record's order.
        failures: cases that failed, with the error's last line.
    """

    source: str
    device: str
    on_gpu: bool
    memory: int | None
    date: str
    version: str | None
    llama_cpp: str | None
    build: str
    note: str | None
    cases: tuple[Case, ...]
    failures: tuple[tuple[str, str], ...]

    @property
    def memory_kind(self) -> str:
        """What `memory` and `Case.peak` are of."""
        return "device memory" if self.on_gpu else "memory of the process"

    @property
    def commits(self) -> str:
        """Of the runs, short."""
        return ", ".join(dict.fromkeys(case.commit for case in self.cases))

    def case(self, name: str | None) -> Case | None:
        """A case by name; None for None and for what was not measured."""
        return next((case for case in self.cases if case.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def load(path: Path) -> Record:
    """A record's file.

    Raises:
        OtherRecordError: it is a record of another kind.
        ConfigError: it is no such record, or has no runs.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:  # no JSON, or no text
        raise ConfigError(str(path), f"is not JSON ({e})", _CURE) from e
    return read(found, path.name)


def read(found: Any, source: str) -> Record:
    """As load(), of a record that is read already; source names it.

    Raises:
        OtherRecordError: it is a record of another kind.
        ConfigError: it is no such record, or has no runs.
    """
    kind = other_kind(found)
    if kind is not None:
        raise OtherRecordError(source, f"is {kind}, and no record of speed and memory", _CURE)
    try:
        runs = found["runs"]
        if not runs:
            raise ConfigError(source, "has no runs", "measure again")
        return _record(found, source)
    except (KeyError, TypeError, IndexError, AttributeError) as e:
        raise ConfigError(source, "is not a record of speed and memory", _CURE) from e


def models(records: list[Record]) -> list[tuple[str, list[tuple[Record, list[Case]]]]]:
    """For each model the records that have it, each with its cases by prompt length."""
    names = dict.fromkeys((case.model, case.weights) for r in records for case in r.cases)
    found = []
    for name in names:
        sides = []
        for record in records:
            cases = [case for case in record.cases if (case.model, case.weights) == name]
            if cases:
                # sorted() keeps the record's order among equals
                cases.sort(key=lambda case: (case.n_prompt, not case.is_full))
                sides.append((record, cases))
        found.append((", ".join(name), sides))
    return found


_CURE = "give what `snapkv-local bench --json FILE` or measure/gpu.py wrote"


def _record(found: dict[str, Any], source: str) -> Record:
    device, machine, build = found["device"], found["machine"], found.get("build", {})
    records.check_format(found, source)
    on_gpu = device.get("kind", "gpu" if device else "cpu") != "cpu"
    names = dict.fromkeys(run["case"] for run in found["runs"])
    cases = [
        _case([r for r in found["runs"] if r["case"] == name], found, on_gpu) for name in names
    ]
    cases = [c if c.against in names else replace(c, against=None) for c in cases]
    return Record(
        source=source,
        device=device.get("name") or f"{machine['cpu']}, {machine['cores']} cores",
        on_gpu=on_gpu,
        memory=_memory(device, machine),
        date=found["date"],
        version=found.get("version", build.get("version")),
        llama_cpp=build.get("llama_cpp_commit"),
        build=", ".join(
            filter(None, [build.get("system"), build.get("compiler"), device.get("backend")])
        ),
        note=found.get("note"),
        cases=tuple(cases),
        failures=tuple(
            (failure["case"], "".join(failure["error"].strip().splitlines()[-1:]))
            for failure in found.get("failures", [])
        ),
    )


def _memory(device: dict[str, Any], machine: dict[str, Any]) -> int | None:
    if "memory_total" in device:
        return int(device["memory_total"])
    said = re.fullmatch(r"(\d+) MiB", device.get("memory.total", ""))  # nvidia-smi's
    if said is not None:
        return int(said[1]) * MIB
    return None if device else machine.get("ram_total")


def _case(runs: list[dict[str, Any]], found: dict[str, Any], on_gpu: bool) -> Case:
    first = runs[0]
    settings, stats = first["settings"], first["stats"]
    measured = values(runs)
    model = found.get("models", {}).get(f"{settings['model']}-{settings['weights']}", {})
    return Case(
        name=first["case"],
        model=model.get("name", settings["model"]),
        weights=settings["weights"],
        cache=_cache(settings["config"]),
        details=_details(settings, on_gpu),
        n_ctx_train=model.get("n_ctx_train"),
        n_prompt=settings["n_prompt"],
        n_runs=len(runs),
        first_token=_figure(measured["seconds_first_token"]),
        prefill=_figure(measured["prefill_tokens_per_second"]),
        decode=_figure(measured["decode_tokens_per_second"]),
        peak=_figure(measured["peak_device" if on_gpu else "peak_rss"]),
        peak_rss=_figure(measured["peak_rss"]),
        bytes_kept=first.get("bytes_kept", stats["bytes_kv"] if stats else None),
        has_room=bool(stats) and "bytes_kept" not in first,
        bytes_kv_full=_full_kv(first, found["runs"]),
        parts={name: stats[name] for name in PARTS} if stats else {},
        against=first["against"],
        commit=_short(first["commit"]),
    )


def _cache(config: dict[str, Any] | None) -> str:
    if config is None:
        return "full cache"
    said = [f"budget {config['budget']}" if "budget" in config else f"ratio {config['keep_ratio']}"]
    said.append(f"G = {config.get('layer_group', 'auto')}")
    other = {
        k: v
        for k, v in config.items()
        if k not in ("budget", "keep_ratio", "layer_group", "decode_cells")
    }
    return ", ".join([*said, *(f"{name} {value}" for name, value in other.items())])


def _details(settings: dict[str, Any], on_gpu: bool) -> str:
    said = []
    if settings["n_seq"] > 1:
        said.append(f"{settings['n_seq']} sequences")
    if on_gpu and settings["n_gpu_layers"] >= 0:
        said.append(f"{settings['n_gpu_layers']} layers on the GPU")
    if settings["kv_type"] != "f16":
        said.append(f"{settings['kv_type']} KV")
    if settings["n_ubatch"] != 512:
        said.append(f"ubatch {settings['n_ubatch']}")
    if settings.get("n_threads"):
        said.append(
            "1 thread" if settings["n_threads"] == 1 else f"{settings['n_threads']} threads"
        )
    if settings.get("leave_free") is not None:
        said.append(f"{settings['leave_free'] / GIB:.0f} GiB of device memory")
    return ", ".join(said)


def _full_kv(run: dict[str, Any], runs: list[dict[str, Any]]) -> int | None:
    """Of the run itself, or of one that differs in the compression only."""
    if run["stats"]:
        return int(run["stats"]["bytes_kv_full"])
    if "bytes_kept" in run:
        return int(run["bytes_kept"])
    alike = ("model", "n_prompt", "n_seq", "kv_type")
    for other in runs:
        same = all(other["settings"][key] == run["settings"][key] for key in alike)
        if other["stats"] and same:
            return int(other["stats"]["bytes_kv_full"])
    return None


def _figure(found: list[float]) -> Figure | None:
    if not found:
        return None
    return Figure(statistics.median(found), min(found), max(found), len(found))


def _short(commit: str) -> str:
    return commit if commit == "unknown" else commit[:9] + ("+" if commit.endswith("+") else "")
