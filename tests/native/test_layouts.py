"""Layers that a file describes and llama.cpp would end the process for: refused with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_shapes import small

from snapkv_local import Llama, SnapKVConfig
from snapkv_local.bench.make_model import make_model
from snapkv_local.errors import UnsupportedModelError

pytestmark = pytest.mark.native

CONFIG = SnapKVConfig(budget=64, window_size=8, decode_cells=64)


def load(path: Path, snapkv: SnapKVConfig | None) -> Llama:
    return Llama(
        str(path), snapkv=snapkv, n_ctx=256, n_batch=64, n_ubatch=64, n_threads=1,
        n_threads_batch=1, verbose=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "changes", "says"),
    [
        # the last layer with KV is none of those that read it
        ("gemma4-e4b", {"n_shared_kv": 1}, "layer 17 has full attention and reads the KV of layer 16"),
        ("gemma4-e4b", {"n_shared_kv": 7}, "layer 11 has full attention"),
        ("gemma4-e4b", {"n_layer": 6, "mixers": "aw", "n_shared_kv": 2}, "layer 4 has full attention"),
        ("gemma4-e4b", {"n_layer": 6, "mixers": "wa", "n_shared_kv": 5}, "1 layers have KV"),
        ("gemma4-e4b", {"n_layer": 6, "mixers": "wa", "n_shared_kv": 7}, "-1 layers have KV"),
        ("gemma4-e4b", {"n_layer": 4, "mixers": "a", "n_shared_kv": 0}, "none of its layers has it"),
        ("gemma4-26b-a4b", {"n_head_kv": 3}, "4 query heads for 3 KV heads"),
        ("llama31-8b", {"n_head_kv": 3}, "4 query heads for 3 KV heads"),
        ("qwen35-9b", {"rope_dim": 128}, "rotates 128 elements of heads that have 64"),
    ],
)  # fmt: skip
def test_layers_that_do_not_fit_are_refused(
    tmp_path: Path, shape: str, changes: dict[str, object], says: str
) -> None:
    path = tmp_path / "model.gguf"
    make_model(small(shape, **changes), "f16", path, name="made")
    for snapkv in (CONFIG, None):
        with pytest.raises(UnsupportedModelError, match=says) as caught:
            load(path, snapkv)
        assert caught.value.subject == str(path)


@pytest.mark.parametrize(("mixers", "n_shared"), [("wa", 4), ("aw", 3), ("awwwww", 3)])
def test_those_that_fit_are_not(tmp_path: Path, mixers: str, n_shared: int) -> None:
    path = tmp_path / "model.gguf"
    shape = small("gemma4-e4b", n_layer=6, mixers=mixers, n_shared_kv=n_shared)
    make_model(shape, "f16", path, name="made")
    for snapkv in (CONFIG, None):
        load(path, snapkv).close()
