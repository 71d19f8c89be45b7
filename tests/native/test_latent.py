"""Llama with models of latent attention (MLA): one row of the cache for all heads, K and V in one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tiny_llama import Make, greedy, maker, tokens

from snapkv_local import SnapKVConfig
from snapkv_local.native import vault
from snapkv_local.policies import reference

pytestmark = pytest.mark.native

WINDOW = 8
CONFIG = SnapKVConfig.paper(budget=64, window_size=WINDOW, decode_cells=64)
VAULT = replace(CONFIG, vault="ram")
HEADS, LATENT, ROPE = 20, 512, 64


@pytest.fixture
def make(arch_models: Path) -> Iterator[Make]:
    """Contexts of a model with 20 query heads, whose votes are counted in two parts."""
    with maker(arch_models / "deepseek2-heads-moe.gguf", CONFIG) as make:
        yield make


def jaccard(a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]) -> float:
    return len(np.intersect1d(a, b)) / len(np.union1d(a, b))


def test_the_budget_of_a_whole_prompt_is_the_full_cache(make: Make) -> None:
    whole = replace(CONFIG, budget=400)
    assert greedy(make(whole), tokens(300), 20) == greedy(make(None), tokens(300), 20)


@pytest.mark.parametrize("ops", ["fused", "ggml"])
def test_all_heads_vote_for_the_rows_of_a_layer(make: Make, ops: Any) -> None:
    """The mean over all query heads, as NumPy has it."""
    llm = make(replace(VAULT, ops=ops))
    llm.prefill(tokens(300))
    kept = llm.kept_positions()
    assert kept.shape == (3, 1, 64 - WINDOW)
    for view, ids in zip(llm.layer_views(), kept, strict=True):
        assert view.q.shape[0] == HEADS
        assert view.k.shape == (1, 300, LATENT + ROPE)
        np.testing.assert_array_equal(view.v, view.k[:, :, :LATENT])
        scores = reference.scores(view.q[:, -WINDOW:], view.k, view.scale)
        assert jaccard(reference.select(scores, ids.shape[1])[0], ids[0]) > 0.97


@pytest.mark.parametrize("kv_type", [1, 8], ids=["f16", "q8_0"])
def test_rows_of_the_vault_come_back_as_they_are(make: Make, kv_type: int) -> None:
    llm = make(VAULT, type_k=kv_type, type_v=kv_type)
    llm.prefill(tokens(300))
    expected, kept = llm.logits_for(tokens(10, seed=2)), llm.kept_positions()
    llm.select_rows(list(kept[:, :, :8]))
    assert not np.array_equal(llm.logits_for(tokens(10, seed=2)), expected)
    llm.select_rows(list(kept))
    np.testing.assert_array_equal(llm.logits_for(tokens(10, seed=2)), expected)


def test_a_row_takes_its_bytes_once(make: Make) -> None:
    llm = make(VAULT)
    stats = llm.prefill(tokens(300))
    assert vault.row_sizes(llm._context("test")) == [(2 * (LATENT + ROPE), 0)] * 3
    assert stats.bytes_kv_full == 3 * 512 * 2 * (LATENT + ROPE)


def test_a_second_question_computes_only_itself(make: Make) -> None:
    vaulted, without = make(VAULT), make()
    other = [*tokens(256), *tokens(80, seed=3)]
    without.prefill(other)
    vaulted.prefill(tokens(300))
    assert vaulted.prefill(other).n_cached == 256
    np.testing.assert_array_equal(vaulted.kept_positions(), without.kept_positions())
    np.testing.assert_array_equal(
        vaulted.logits_for(tokens(5, seed=2)), without.logits_for(tokens(5, seed=2))
    )


def test_the_next_turn_goes_on(make: Make) -> None:
    llm, other = make(), make()
    prompt, more = tokens(300), tokens(20, seed=2)
    answer = greedy(llm, prompt, 10)
    found = greedy(llm, [*prompt, *answer, *more], 10)
    assert llm.n_cached == len(prompt) + len(answer) - 1
    other.prefill(prompt)
    other.eval(answer[:-1])
    other.eval([answer[-1], *more])
    assert found[0] == int(np.argmax(other._logits(1)[0]))


def test_an_answer_longer_than_the_cells_goes_on(make: Make) -> None:
    llm = make()
    answer = greedy(llm, tokens(200), 150)
    assert len(answer) == 150
    assert len(llm.evictions) == 2
    n = llm.evictions[-1].n_prompt
    said = [*tokens(200), *answer]
    assert greedy(make(), said[:n], 1) == said[n : n + 1]


@pytest.mark.parametrize("config", [CONFIG, VAULT], ids=["compact", "vault"])
def test_sessions(make: Make, tmp_path: Path, config: SnapKVConfig) -> None:
    llm, other = make(config), make(config)
    answer = greedy(llm, tokens(300), 5)
    llm.save_session(tmp_path / "s.snapkv")
    other.load_session(tmp_path / "s.snapkv")
    turn = [*tokens(300), *answer, *tokens(20, seed=2)]
    assert greedy(other, turn, 10) == greedy(llm, turn, 10)
    assert other.n_cached == llm.n_cached > 200


def test_a_policy_in_python_sees_the_latent_rows(make: Make) -> None:
    llm = make(SnapKVConfig(keep_ratio=0.2, window_size=WINDOW, policy="value"))
    assert len(greedy(llm, tokens(300), 10)) == 10
    assert llm.kept_positions().shape[:2] == (3, 1)
