"""Llama with Gemma 4: heads of 512, sliding windows, layers that read the KV of others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_llama import CHUNK, Make, greedy, logits, maker, tokens

from snapkv_local import Llama, SnapKVConfig

pytestmark = pytest.mark.native

# turns begin where a chunk of CHUNK tokens does, so that a prefill anew computes in the same ones
CONFIG = SnapKVConfig(budget=64, window_size=8, decode_cells=64)
VAULT = SnapKVConfig(budget=64, window_size=8, decode_cells=64, vault="ram")


@pytest.fixture(params=["gemma4-dense", "gemma4-shared-dense"])
def make(request: pytest.FixtureRequest, arch_models: Path) -> Iterator[Make]:
    with maker(arch_models / f"{request.param}.gguf", CONFIG, swa_full=False) as make:
        yield make


def assert_same(llm: Llama, other: Llama) -> None:
    """Both have the same last logits and the same rows, and go on alike."""
    np.testing.assert_array_equal(logits(llm), logits(other))
    np.testing.assert_array_equal(llm.kept_positions(), other.kept_positions())
    more = tokens(8, seed=9)
    np.testing.assert_array_equal(llm.logits_for(more), other.logits_for(more))


def test_a_prefill_has_the_logits_of_the_full_cache(make: Make) -> None:
    full, ours = make(None), make()
    full.eval(tokens(300))
    stats = ours.prefill(tokens(300))
    assert stats.n_kept == 64
    np.testing.assert_array_equal(logits(ours), logits(full))


def test_the_next_turn_computes_its_own_tokens(make: Make) -> None:
    llm, other = make(), make()
    prompt, more = tokens(300), tokens(20, seed=2)
    answer = greedy(llm, prompt, 10)
    found = greedy(llm, [*prompt, *answer, *more], 10)
    assert llm.n_cached == len(prompt) + len(answer) - 1

    other.prefill(prompt)
    other.eval(answer[:-1])
    other.eval([answer[-1], *more])
    assert found[0] == int(np.argmax(logits(other)))
    assert found == greedy(other, [*prompt, *answer, *more], 10)


def test_a_turn_beyond_the_cells_evicts_as_a_prefill_anew(make: Make) -> None:
    """What was there had all its rows yet."""
    llm, anew = make(), make()
    turn = [*tokens(CHUNK), *tokens(150, seed=4)]
    llm.prefill(turn[:CHUNK])
    greedy(llm, turn, 1)
    assert llm.n_cached == CHUNK
    assert llm.last_prefill is not None
    assert (llm.last_prefill.n_prompt, llm.last_prefill.n_kept) == (len(turn), 64)
    anew.prefill(turn)
    assert_same(llm, anew)


def test_an_answer_longer_than_the_cells_goes_on(make: Make) -> None:
    llm = make()
    assert len(greedy(llm, tokens(200), 150)) == 150
    assert len(llm.evictions) == 2


def test_a_question_to_the_vault_is_a_prefill_anew(make: Make) -> None:
    llm, document = make(VAULT), tokens(4 * CHUNK)
    llm.prefill(document)
    for seed in (6, 7):
        prompt, anew = [*document, *tokens(90, seed=seed)], make(VAULT)
        assert llm.prefill(prompt).n_cached == len(document)
        anew.prefill(prompt)
        assert_same(llm, anew)


@pytest.mark.parametrize("layer", [0, -1])
def test_layers_may_keep_fewer_rows(make: Make, layer: int) -> None:
    """Whatever lies in the cells that such a layer leaves out, for itself and for those that read it."""
    prompt = tokens(300)
    llm, other = make(VAULT), make(VAULT)
    llm.prefill(prompt)
    other.prefill(prompt)
    kept = list(llm.kept_positions())
    before = llm.logits_for(prompt[:4])
    other.select_rows([ids * 0 + np.arange(ids.shape[1], dtype=np.int32) for ids in kept])
    kept[layer] = kept[layer][:, -20:]
    llm.select_rows(kept)
    other.select_rows(kept)
    after = llm.logits_for(prompt[:4])
    assert not np.array_equal(after, before)
    np.testing.assert_array_equal(after, other.logits_for(prompt[:4]))


def test_sessions(make: Make, tmp_path: Path) -> None:
    llm, other = make(), make()
    answer = greedy(llm, tokens(300), 5)
    llm.save_session(tmp_path / "s.snapkv")
    other.load_session(tmp_path / "s.snapkv")
    turn = [*tokens(300), *answer, *tokens(20, seed=2)]
    assert greedy(other, turn, 10) == greedy(llm, turn, 10)
    assert other.n_cached == llm.n_cached > 300


def test_documents(make: Make, tmp_path: Path) -> None:
    llm, other = make(VAULT), make(VAULT)
    llm.ingest("tide " * 60, tmp_path / "d.snapkv")
    document = other.open_document(tmp_path / "d.snapkv").tokens.tolist()
    prompt = [*document, *tokens(90, seed=6)]
    assert other.prefill(prompt).n_cached == llm.prefill(prompt).n_cached == len(document)
    assert_same(other, llm)


@pytest.mark.parametrize("policy", ["value", "h2o"])
def test_a_policy_in_python_sees_all_queries(make: Make, policy: str) -> None:
    llm = make(SnapKVConfig(keep_ratio=0.2, window_size=8, policy=policy))
    assert len(greedy(llm, tokens(300), 5)) == 5
    assert llm.kept_positions().shape[0] == len(llm.cached_layers()) >= 3
