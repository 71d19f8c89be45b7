"""`plan` against the engine, model by model: what it takes, counted to the byte, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from snapkv_local import Llama, SnapKVConfig
from snapkv_local.errors import UnsupportedModelError
from snapkv_local.plan.memory import compressed
from snapkv_local.plan.model import PlannedModel, read_model
from snapkv_local.stats import PrefillStats

CONFIG = SnapKVConfig(budget=64, window_size=8, decode_cells=64)
N_PROMPT = 200

# models that end there, with learned embeddings of positions
N_POSITIONS = {"gpt2-dense": 256, "starcoder-dense": 256}


def planned(path: Path) -> PlannedModel | None:
    """None if the plan refuses the model."""
    try:
        return read_model(path)
    except UnsupportedModelError:
        return None


def measured(path: Path) -> PrefillStats | None:
    """None if the engine refuses the model."""
    try:
        llm = Llama(
            str(path), snapkv=CONFIG, n_ctx=N_POSITIONS.get(path.stem, 512), n_batch=512, n_ubatch=512,
            n_threads=1, n_threads_batch=1, verbose=False,
        )  # fmt: skip
    except UnsupportedModelError:
        return None
    try:
        return llm.prefill(np.random.default_rng(1).integers(0, 100, N_PROMPT).tolist())
    finally:
        llm.close()


def test_all_architectures(arch_models: Path) -> None:
    paths = sorted(arch_models.glob("*.gguf"))
    assert len(paths) > 100
    wrong = []
    for path in paths:
        model, stats = planned(path), measured(path)
        if model is None or stats is None:
            if (model is None) != (stats is None):
                wrong.append(
                    f"{path.name}: refused by {'plan' if model is None else 'engine'} only"
                )
            continue
        estimate = compressed(
            model, N_PROMPT, CONFIG, "f16", group=stats.layer_group, n_ubatch=stats.n_ubatch
        )
        for part, n_bytes in {
            "kv": stats.bytes_kv - stats.bytes_recurrent,
            "recurrent": stats.bytes_recurrent,
            "kv_group": stats.bytes_kv_group,
            "hidden": stats.bytes_hidden,
            "mask": stats.bytes_mask,
        }.items():
            found = estimate.parts[part].total if part in estimate.parts else 0
            if found != n_bytes:
                wrong.append(f"{path.name}: {part} of {found} bytes, not {n_bytes}")
    assert not wrong, "\n".join(wrong)
