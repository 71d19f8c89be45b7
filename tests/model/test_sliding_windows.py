"""Models whose layers have sliding windows, all but each sixth: their cells hold a window only."""

import dataclasses

import numpy as np
import pytest

from snapkv_local import SnapKVConfig
from snapkv_local.bench.make_model import make_model
from snapkv_local.bench.shapes import SHAPES

N_SWA = 32
CONFIG = SnapKVConfig(budget=256, window_size=8, decode_cells=256, layer_group=1)
SIZES = {"n_ctx": 2048, "n_batch": 64, "n_ubatch": 64}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    small = {"n_layer": 12, "n_embd": 128, "n_ff": 128, "n_head": 4, "n_head_kv": 2, "head_dim": 64}
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
    assert small.bytes_kv < large.bytes_kv


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


@pytest.mark.parametrize("group", [1, 2])
def test_a_long_turn_goes_in_group_by_group(make, path, group):
    # the last chunks take cells of the tokens before the turn, which the next group still needs
    prompt, more = tokens(1200), tokens(600, seed=3)
    config = dataclasses.replace(CONFIG, decode_cells=32, layer_group=group)
    llm = make(config, path, **SIZES)
    llm.prefill(prompt)
    llm.eval(more)
    assert llm.last_prefill.n_prompt == 1800
    found = llm._logits(1).copy()

    # the same rows before it, in a cache with cells for all
    wide = make(dataclasses.replace(config, decode_cells=1024), path, **SIZES)
    wide.prefill(prompt)
    wide.eval(more)
    assert wide.last_prefill.n_prompt == 1200
    expected = wide._logits(1)
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


def test_the_vault_has_their_last_rows(make, path):
    config = dataclasses.replace(CONFIG, vault="ram")
    llm, fresh = make(config, path, **SIZES), make(CONFIG, path, **SIZES)
    text, question = tokens(1536), tokens(448, seed=3)
    llm.prefill(text)
    stats = llm.prefill([*text, *question])
    assert stats.n_cached == 1536
    fresh.prefill([*text, *question])
    np.testing.assert_array_equal(llm.kept_positions(), fresh.kept_positions())
    np.testing.assert_array_equal(llm._logits(1), fresh._logits(1))

    # a prompt that parts from it long before its end finds no window to go on from
    assert llm.prefill([*text[:1200], *question]).n_cached == 0
    # and a short question goes back by some rows
    llm.prefill(text)
    assert llm.prefill([*text, *question[:3]]).n_cached == 1536 + 3 - 64
