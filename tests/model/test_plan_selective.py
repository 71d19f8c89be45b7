"""`plan` beside the engine: what a selective prefill takes and computes, and what a recall takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_shapes import quarter

from snapkv_local import Llama, SnapKVConfig
from snapkv_local.bench.make_model import make_model
from snapkv_local.bench.shapes import SHAPES
from snapkv_local.models.resolve import needle_model
from snapkv_local.plan import recall as planned_recall
from snapkv_local.plan.memory import Estimate, compressed
from snapkv_local.plan.model import read_model
from snapkv_local.stats import PrefillStats

N_PROMPT = 900
CONFIG = SnapKVConfig(
    budget=128, window_size=16, decode_cells=64,
    prefill="selective", select_min=200, select_settled=0.0,
)  # fmt: skip

Make = Callable[..., Llama]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """needle; three of 18 layers without a sliding window; as many KV heads as heads, and little else."""
    folder = tmp_path_factory.mktemp("models")
    wide = {"n_layer": 5, "n_embd": 128, "n_ff": 320, "n_head": 4, "n_head_kv": 4, "head_dim": 32}
    made = {
        "windows": dataclasses.replace(quarter("gemma3-4b"), n_layer=18),
        "wide": dataclasses.replace(SHAPES["llama2-7b"], n_vocab=512, **wide),
    }
    for name, shape in made.items():
        make_model(shape, "f16", folder / f"{name}.gguf", name=name)
    return {"needle": needle_model(), **{name: folder / f"{name}.gguf" for name in made}}


def run(make: Make, path: Path, config: SnapKVConfig) -> tuple[Estimate, PrefillStats, Llama]:
    llm = make(config, str(path), n_ctx=1024, n_batch=512, n_ubatch=512)
    tokens = np.random.default_rng(1).integers(10, 500, N_PROMPT).tolist()
    stats = llm.prefill(tokens)
    group, n_ubatch = stats.layer_group, stats.n_ubatch
    model = read_model(path)
    return (
        compressed(model, N_PROMPT, config, "f16", group=group, n_ubatch=n_ubatch),
        stats,
        llm,
    )


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("needle", {}),
        ("needle", {"layer_group": 2}),
        ("needle", {"prefill": "exact"}),
        ("windows", {}),
        ("wide", {"n_ubatch": 128}),
    ],
    ids=str,
)
def test_bytes_rows_and_work(
    make: Make, paths: dict[str, Path], name: str, changes: dict[str, object]
) -> None:
    config = dataclasses.replace(CONFIG, **changes)
    planned, stats, _ = run(make, paths[name], config)
    for part, n_bytes in {
        "kv": stats.bytes_kv,
        "kv_group": stats.bytes_kv_group,
        "hidden": stats.bytes_hidden,
        "mask": stats.bytes_mask,
    }.items():
        assert planned.parts[part].total == n_bytes, part
    # but for tokens, positions and cells
    assert planned.parts["compute"].main == pytest.approx(stats.bytes_compute, rel=0.02, abs=24_000)
    if config.prefill == "exact":
        assert planned.selection is None and stats.layer_work == 1.0
        return
    assert planned.selection is not None and stats.n_selected < N_PROMPT
    assert planned.selection.n_layer == stats.n_layer_all
    assert planned.selection.n_rows == stats.n_selected
    assert planned.selection.work == pytest.approx(stats.layer_work)


def test_a_look_takes_more_where_kv_is_wide(make: Make, paths: dict[str, Path]) -> None:
    found = {}
    for prefill in ("exact", "selective"):
        config = dataclasses.replace(CONFIG, prefill=prefill, n_ubatch=128)
        found[prefill] = run(make, paths["wide"], config)[1].bytes_compute
    assert found["selective"] > found["exact"]


@pytest.mark.parametrize(("depth", "settled"), [(0.2, 0.0), (0.34, 1e-6), (0.1, 1e-6), (0.8, 0.0)])
def test_where_rows_are_chosen(make: Make, depth: float, settled: float) -> None:
    config = dataclasses.replace(CONFIG, select_depth=depth, select_settled=settled)
    planned, stats, _ = run(make, needle_model(), config)
    assert planned.selection is not None
    assert planned.selection.n_layer == stats.n_layer_all
    assert planned.selection.n_rows == stats.n_selected


@pytest.mark.parametrize(("name", "rows"), [("needle", 0), ("windows", 0), ("needle", 16)])
def test_the_votes_of_a_recall(make: Make, paths: dict[str, Path], name: str, rows: int) -> None:
    config = dataclasses.replace(
        CONFIG, prefill="exact", vault="ram", recall=True, recall_every=8, recall_rows=rows
    )
    planned, stats, llm = run(make, paths[name], config)
    assert planned.parts["vault"].total == pytest.approx(stats.bytes_vault, rel=0.01)
    llm.logits_for(list(range(10, 18)))
    (recall,) = llm.recalls()
    model = read_model(paths[name])
    votes = planned_recall.bytes_votes(model, N_PROMPT, config, llm.n_threads)
    assert votes == pytest.approx(recall.bytes_votes, rel=0.08)
    index = planned_recall.bytes_index(model, N_PROMPT, config)
    assert index == recall.bytes_index and (index > 0) == (rows > 0)
    votes = planned_recall.bytes_votes(model, N_PROMPT, config)
    assert votes + index < planned.parts["recall"].total < 2 * votes + index
