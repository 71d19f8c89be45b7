"""The engine without Python in between, on synthetic models and on the demo model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import architectures
from snapkv_local import models

Run = Callable[..., str]

pytestmark = pytest.mark.native


def test_selection(run: Run) -> None:
    assert run("test-snapkv-select").strip() == "OK"


@pytest.mark.parametrize("arch", ["llama-dense", "gemma3-dense", "gpt-oss-moe", "qwen3-dense"])
def test_compacted_sequences(run: Run, arch_models: Path, arch: str) -> None:
    """Guards, states, sequences, no room, aborts, out of memory; with sliding windows and without."""
    assert run("test-snapkv-cache", arch_models / f"{arch}.gguf").strip().endswith("OK")


def test_every_architecture_is_exact_or_refused(binaries: Path) -> None:
    records = architectures.sweep(binaries)
    assert architectures.problems(records) == []
    assert architectures.table(records) == architectures.TABLE.read_text(), (
        "docs/architectures.md is not up to date: run scripts/architectures.py"
    )


@pytest.mark.parametrize("kv_type", ["f16", "q8_0", "q4_0"])
def test_demo_model_is_exact(run: Run, kv_type: str) -> None:
    """Several ubatches, the last shorter than the window; G that divides the layers or does not."""
    options = ["-n", "270", "-u", "128", "-b", "96", "-w", "32", "-g", "1,7,0", "-t", kv_type]
    record = json.loads(run("test-snapkv-exact", *options, models.demo_model()))
    assert record["exact"]
    assert [r["max_diff"] for r in record["runs"]] == [0, 0, 0]
