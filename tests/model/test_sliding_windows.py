"""Models whose layers have sliding windows, all but each sixth: their cells hold a window only."""

import dataclasses

import numpy as np
import pytest

from snapkv_local import SnapKVConfig
from snapkv_local.bench.make_model import make_model
from snapkv_local.bench.shapes import SHAPES

N_SWA = 32
CONFIG = SnapKVConfig(budget=256, window=8, room=256, layer_group=1)
SIZES = {"n_ctx": 2048, "n_batch": 64, "n_ubatch": 64}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    small = {"n_layer": 6, "n_embd": 128, "n_ff": 128, "n_head": 4, "n_head_kv": 2, "head_dim": 64}
    shape = dataclasses.replace(SHAPES["gemma3-4b"], n_vocab=512, n_swa=N_SWA, **small)
    path = tmp_path_factory.mktemp("gemma") / "gemma3.gguf"
    make_model(shape, "f16", path, name="gemma3")
    return str(path)


def tokens(n, seed=1):
    return np.random.default_rng(seed).integers(10, 500, n).tolist()


def test_their_cache_has_cells_for_the_window(make, path):
    prompt = tokens(1500)
    small = make(CONFIG, path, **SIZES).prefill(prompt)
    large = make(CONFIG, path, **SIZES, swa_full=True).prefill(prompt)
    assert small.n_kept == large.n_kept == 256
    assert small.bytes_compact < large.bytes_compact


@pytest.mark.parametrize("n_prompt", [200, 1500], ids=["left alone", "compressed"])
@pytest.mark.parametrize("n_same", [20, 150])
def test_a_prompt_that_parts_before_the_window_is_evaluated_anew(
    make, path, greedy, n_prompt, n_same
):
    prompt = tokens(n_prompt)
    other = [*prompt[:n_same], *tokens(100, seed=2)]
    llm = make(CONFIG, path, **SIZES)
    expected = greedy(llm, other, 8)
    greedy(llm, prompt, 2)
    found = []
    for token in llm.generate(other, temp=0.0, reset=True):
        found.append(token)
        if len(found) == 8:
            break
    assert found == expected


def test_a_conversation_goes_on(make, path):
    llm = make(CONFIG, path, **SIZES)
    prompt, more = tokens(1500), tokens(60, seed=3)
    llm.prefill(prompt)
    first = llm.last_prefill
    next(llm.generate([*prompt, *more], temp=0.0))
    assert llm.last_prefill is first
    assert llm.n_tokens == 1560
