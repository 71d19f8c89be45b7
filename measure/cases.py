"""What is measured on a GPU machine: one table.

Names say step, model and prompt; a case that ends in -plain is llama.cpp with the full cache. The
seconds are those of one run on an H100, loading included, for deciding what still fits the time.
"""

from __future__ import annotations

import fnmatch
from dataclasses import asdict, dataclass, replace
from typing import Any

from snapkv_local.bench.session import DECODE_CELLS, N_WARMUP, RunOptions
from snapkv_local.report.units import GIB


@dataclass(frozen=True)
class Case(RunOptions):
    """One process, or several alike.

    Attributes:
        name: unique.
        label: for people, in tables.
        model: a name in snapkv_local.bench.shapes.
        n_prompt: tokens of each sequence's prompt.
        config: of SnapKVConfig, without decode_cells; None for the full cache.
        seconds: of one run, an estimate.
        against: name of the case with the full cache to compare with.
        repeats: processes.
        weights: type of the matrices.
        decode_repeats: timed runs in one process.
        leave_free: bytes of device memory that another process leaves to it; None for all.
    """

    name: str
    label: str
    model: str
    n_prompt: int
    config: dict[str, Any] | None
    seconds: float
    against: str | None = None
    repeats: int = 1
    weights: str = "q4_0"
    decode_repeats: int = 5
    leave_free: int | None = None

    @property
    def step(self) -> str:
        """The part of the benchmark that the case belongs to."""
        return self.name.split("-")[0]

    def settings(self) -> dict[str, Any]:
        """What a run is given, and its record keeps."""
        other = ("name", "label", "seconds", "against", "repeats")
        settings = {key: value for key, value in asdict(self).items() if key not in other}
        if self.config is not None:
            settings["config"] = {"decode_cells": DECODE_CELLS, **self.config}
        return {**settings, "decode_cells": DECODE_CELLS, "n_warmup": N_WARMUP, "seed": 1}


_8B, _7B = "llama31-8b", "llama2-7b"
# a hybrid, heads of two widths, and mixtures of experts
_27B, _26B, _30B, _20B = "qwen35-27b", "gemma4-26b-a4b", "qwen3-30b-a3b", "gpt-oss-20b"
_K = 1024
_BUDGET = {"budget": 2048}
_G1 = {**_BUDGET, "layer_group": 1}
_PREFILL: dict[str, Any] = {"repeats": 3}  # decode at 128K is timed in these runs, too
# the output matrix counts as a layer, too
_PARTIAL: dict[str, Any] = {"n_gpu_layers": 17, "decode_repeats": 1}


def _tokens(thousands: int) -> int:
    """A prompt that fills a context of so many times 1024 tokens, but for the room."""
    return thousands * _K - DECODE_CELLS


CASES = (
    Case("decode-8b-16k", "8B, 16K", _8B, _tokens(16), _BUDGET, 20),
    Case("decode-8b-64k", "8B, 64K", _8B, _tokens(64), _BUDGET, 30),
    Case("decode-7b-64k", "7B, 64K", _7B, _tokens(64), _BUDGET, 30, "decode-7b-64k-plain"),
    Case("decode-7b-64k-plain", "7B, 64K, full cache", _7B, _tokens(64), None, 35),
    Case(
        "memory-8b-128k-g1-host",
        "8B, 128K, hidden state on the host",
        _8B,
        _tokens(128),
        {**_G1, "hidden_state": "host"},
        36,
        "prefill-8b-128k-plain",
        decode_repeats=1,
    ),
    Case(
        "vault-8b-128k-g1-host",
        "8B, 128K, hidden state on the host, vault",
        _8B,
        _tokens(128),
        {**_G1, "hidden_state": "host", "vault": "ram"},
        60,
        "prefill-8b-128k-plain",
        decode_repeats=1,
        n_follow=64,
    ),
    Case(
        "memory-8b-128k-cap8",
        "8B, 128K, 8 GiB of device memory",
        _8B,
        _tokens(128),
        _BUDGET,
        38,
        decode_repeats=1,
        leave_free=8 * GIB,
    ),
    # is auto within 3 % of the fastest?
    *(
        Case(
            f"prefill-8b-{k}k{suffix}",
            f"8B, {k}K{label}",
            _8B,
            _tokens(k),
            config,
            seconds,
            f"prefill-8b-{k}k-plain" if config else None,
            **_PREFILL,
        )
        for k, seconds in ((16, 12), (128, 36))
        for config, suffix, label in (
            (_BUDGET, "", ""),
            ({**_BUDGET, "layer_group": 32}, "-g32", ", all layers at once"),
            (None, "-plain", ", full cache, ubatch 512"),
        )
    ),
    Case(
        "prefill-8b-128k-plain-ubatch2048",
        "8B, 128K, full cache, ubatch 2048",
        _8B,
        _tokens(128),
        None,
        40,
        n_ubatch=2048,
    ),
    *(
        Case(
            f"batch{n}-{size}-16k{suffix}",
            f"{size.upper()}, {n} sequences of 16K{label}",
            model,
            _tokens(16),
            config,
            seconds,
            f"batch{n}-{size}-16k-plain" if config else None,
            n_seq=n,
        )
        for n, size, model, seconds in ((2, "7b", _7B, 28), (16, "8b", _8B, 60))
        for config, suffix, label in ((_BUDGET, "", ""), (None, "-plain", ", full cache"))
    ),
    Case(
        "headline-7b-380k",
        "7B, 380,000 tokens, budget 1024",
        _7B,
        380_000,
        {**_G1, "budget": 1024, "hidden_state": "host"},
        700,
        decode_repeats=3,
    ),
    Case(
        "headline-8b-512k",
        "8B, 512K",
        _8B,
        _tokens(512),
        {**_G1, "hidden_state": "host"},
        350,
        decode_repeats=3,
    ),
    # attention of the layers that stay behind runs on the processor: 8K first, 32K where time allows
    *(
        Case(
            f"partial-8b-{k}k{suffix}",
            f"8B, {k}K, 16 of 32 layers on the GPU{label}",
            _8B,
            _tokens(k),
            config,
            seconds,
            f"partial-8b-{k}k-plain" if config else None,
            **_PARTIAL,
        )
        for k, seconds in ((8, 20), (32, 60))
        for config, suffix, label in ((_BUDGET, "", ""), (None, "-plain", ", full cache"))
    ),
    *(
        Case(
            f"{name}-128k{suffix}",
            f"{label}, 128K{words}",
            model,
            _tokens(128),
            config,
            seconds,
            f"{name}-128k-plain" if config else None,
            **_PREFILL,
        )
        for name, label, model, seconds in (
            ("hybrid-27b", "Qwen3.5-27B", _27B, 120),
            ("gemma4-26b", "Gemma4-26B-A4B", _26B, 60),
            ("moe-30b", "Qwen3-30B-A3B", _30B, 90),
            ("moe-20b", "gpt-oss-20b", _20B, 60),
        )
        for config, suffix, words in ((_BUDGET, "", ""), (None, "-plain", ", full cache"))
    ),
    *(
        Case(
            f"hybrid-27b-{k}k-g1-host",
            f"Qwen3.5-27B, {k}K, hidden state on the host",
            _27B,
            _tokens(k),
            {**_G1, "hidden_state": "host"},
            seconds,
            "hybrid-27b-128k-plain" if k == 128 else None,
            decode_repeats=3,
        )
        for k, seconds in ((128, 120), (256, 300))
    ),
    Case(
        "hybrid-27b-128k-cap16",
        "Qwen3.5-27B, 128K, 16 GiB of device memory",
        _27B,
        _tokens(128),
        _BUDGET,
        130,
        decode_repeats=3,
        leave_free=16 * GIB,
    ),
)

GROUPS = {"speed": ("decode", "prefill", "batch2", "partial")}


def steps_of(table: tuple[Case, ...]) -> tuple[str, ...]:
    """The parts of the benchmark that cases belong to."""
    return tuple(dict.fromkeys(case.step for case in table))


def select(patterns: list[str], table: tuple[Case, ...] = CASES) -> list[Case]:
    """The cases that steps, groups of steps, names or patterns of names choose, in their order.

    Args:
        table: of the cases to choose from.

    Raises:
        ValueError: one chooses nothing.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        steps = GROUPS.get(pattern, (pattern,))
        found = {
            case.name
            for case in table
            if case.step in steps or fnmatch.fnmatchcase(case.name, pattern)
        }
        if not found:
            known = ", ".join([*steps_of(table), *GROUPS, *(case.name for case in table)])
            raise ValueError(f"{pattern}: no such step or case; there are {known}")
        chosen |= found
    return [case for case in table if case.name in chosen]


def smoke(case: Case, gpu: bool) -> Case:
    """The case with a tiny model, on the CPU or a GPU: all of the way, in seconds."""
    config = None
    if case.config is not None:
        config = {**case.config, "budget": 64, "window_size": 16}
    return replace(
        case,
        model="tiny",
        n_prompt=256 + case.n_prompt // 1024,
        config=config,
        seconds=3,
        repeats=min(case.repeats, 2),
        n_batch=128,
        n_ubatch=min(case.n_ubatch, 64),
        n_gpu_layers=min(case.n_gpu_layers, 3) if gpu else 0,
        n_threads=1,  # two would wait for each other on a busy machine
        n_decode=4,
        decode_repeats=min(case.decode_repeats, 2),
        leave_free=case.leave_free if gpu else None,
    )


def with_config(case: Case, changes: dict[str, Any]) -> Case:
    """The case with other settings, and a name and label that say so; the full cache has none."""
    if case.config is None or not changes:
        return case
    said = ", ".join(f"{key}={value}" for key, value in changes.items())
    return replace(
        case,
        name=f"{case.name}+{said.replace(', ', '+')}",
        label=f"{case.label}, {said}",
        config={**case.config, **changes},
    )
