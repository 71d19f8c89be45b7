"""The measurement of refitted values, with a model: what it takes from the engine, and puts into it."""

from pathlib import Path

import numpy as np
import pytest

from refit import written
from refitting import Rotation
from snapkv_local import Llama, SnapKVConfig

N = 120
N_KEPT = 24


@pytest.fixture(scope="module")
def llm(model_path):
    config = SnapKVConfig(budget=2 * N, window_size=16, decode_cells=8, vault="ram")
    llm = Llama(model_path, snapkv=config, keep_queries=2 * N, n_ctx=512, verbose=False)
    yield llm
    llm.close()


def test_queries_turn_as_the_model_turns_them(llm, model_path):
    half = np.random.default_rng(0).integers(100, 4000, N).tolist()
    llm.prefill([*half, *half])
    q = llm.layer_views()[0].q  # of the first layer, which knows no other token
    turned = Rotation.read(Path(model_path)).turned(q[:, :N], np.full(N, N))
    assert np.abs(turned - q[:, N:]).max() < 0.01 < np.abs(q[:, :N] - q[:, N:]).max()


def test_written_values_are_decoded_with_and_go_again(llm):
    prompt = np.random.default_rng(1).integers(100, 4000, N).tolist()
    llm.prefill([*prompt, 7])
    llm.prefill(prompt)  # goes on from the vault, which then has two segments
    layers = llm.layer_views()
    kept = [np.tile(np.arange(N_KEPT, dtype=np.int32), (len(view.k), 1)) for view in layers]
    rows = np.concatenate([np.arange(N_KEPT), np.arange(N - 16, N)])

    def logits(factor):
        values = [[(rows, factor * v[rows]) for v in view.v] for view in layers]
        with written(llm, values):
            llm.select_rows(kept)
            assert llm.layer_views()[1].v[0, rows] == pytest.approx(
                factor * layers[1].v[0, rows], abs=1e-2
            )
        return llm.logits_for([7], last=1)

    llm.select_rows(kept)
    plain = llm.logits_for([7], last=1)
    assert (logits(1) == plain).all()
    assert np.abs(logits(2) - plain).max() > 0.1
    assert all(
        (now.v == before.v).all() for now, before in zip(llm.layer_views(), layers, strict=True)
    )
