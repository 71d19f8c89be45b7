"""Every shape of `bench make-model` is a model that llama.cpp loads and runs; here made small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_shapes import SHAPES, small

from snapkv_local import Llama
from snapkv_local.bench.make_model import make_model

pytestmark = pytest.mark.native


@pytest.mark.parametrize("name", SHAPES)
def test_llama_cpp_runs_it(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    made = make_model(small(name), "q8_0", path, name=name)
    llm = Llama(str(path), n_ctx=256, n_threads=1, n_threads_batch=1, verbose=False)
    try:
        llm.eval(np.random.default_rng(1).integers(0, made.n_vocab, 100).tolist())
        logits = llm._logits(1)[0]
        assert np.isfinite(logits).all()
        assert logits.std() > 0
    finally:
        llm.close()
