"""Selective prefill: all rows go through the first layers, then those that others will look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from refused import refused

from snapkv_local import Llama, SnapKVConfig
from snapkv_local.errors import ConfigError, UnsupportedModelError
from snapkv_local.eval.tasks import Wanted, get
from snapkv_local.eval.tokens import open_tokens
from snapkv_local.models.resolve import needle_model

WINDOW = 16
EXACT = SnapKVConfig(budget=96, window_size=WINDOW, decode_cells=64)
CONFIG = replace(
    EXACT,
    prefill="selective",
    select_share=0.3,
    select_min=1,
    select_depth=0.5,
    select_settled=0.0,
)

Make = Callable[..., Llama]


def after(llm: Llama, tokens: list[int]) -> np.ndarray:
    return llm.logits_for(tokens)


def test_with_all_rows_it_is_exact(make: Make, prompt: list[int]) -> None:
    exact, llm = make(EXACT), make(replace(CONFIG, select_share=1.0))
    assert exact.prefill(prompt).n_selected == 0
    stats = llm.prefill(prompt)
    assert (stats.n_selected, stats.layer_work) == (len(prompt), 1.0)
    np.testing.assert_array_equal(llm.kept_positions(), exact.kept_positions())
    np.testing.assert_array_equal(after(llm, prompt[:9]), after(exact, prompt[:9]))


def test_later_layers_have_the_rows_that_go_on(make: Make, prompt: list[int]) -> None:
    llm = make(CONFIG, keep_scores=True)
    stats = llm.prefill(prompt)
    rows, layers = llm.selected_positions(), llm.cached_layers()
    assert 0.3 * len(prompt) <= stats.n_selected == len(rows) <= 0.3 * len(prompt) + 2 * 32
    assert stats.n_layer_all == len(layers) // 2
    share = stats.n_layer_all / len(layers)
    assert stats.layer_work == pytest.approx(share + (1 - share) * len(rows) / len(prompt))
    assert set(range(len(prompt) - WINDOW, len(prompt))) | {0} <= set(rows.tolist())
    for layer, kept, scores in zip(layers, llm.kept_positions(), llm.prefill_scores(), strict=True):
        is_later = layer >= stats.n_layer_all
        assert np.isin(kept, rows).all() or not is_later
        others = np.setdiff1d(np.arange(scores.shape[1]), rows)
        assert (scores[:, others] == 0).all() == is_later


def test_votes_that_do_not_settle_leave_it_exact(make: Make, prompt: list[int]) -> None:
    llm = make(replace(CONFIG, select_settled=1.0))
    stats = llm.prefill(prompt)
    assert (stats.n_selected, stats.layer_work) == (0, 1.0)
    assert 0 < stats.settled < 1
    assert len(llm.selected_positions()) == 0
    exact = make(EXACT)
    exact.prefill(prompt)
    np.testing.assert_array_equal(after(llm, prompt[:9]), after(exact, prompt[:9]))


@pytest.mark.parametrize(
    "settings",
    [{"layer_group": 3}, {"hidden_state": "host"}, {"hidden_state": "device"}, {"ops": "ggml"}],
    ids=str,
)
def test_it_is_the_same_however_it_is_computed(
    make: Make, prompt: list[int], settings: dict[str, object]
) -> None:
    llm, other = make(CONFIG), make(replace(CONFIG, **settings))
    llm.prefill(prompt)
    assert other.prefill(prompt).n_layer_all == 3
    np.testing.assert_array_equal(other.selected_positions(), llm.selected_positions())
    np.testing.assert_array_equal(other.kept_positions(), llm.kept_positions())
    np.testing.assert_array_equal(after(other, prompt[:9]), after(llm, prompt[:9]))


def test_protected_rows_go_on(make: Make, prompt: list[int]) -> None:
    llm = make(CONFIG)
    llm.set_protected([(100, 104)])
    llm.prefill(prompt)
    assert np.isin(np.arange(100, 104), llm.selected_positions()).all()
    assert all(np.isin(np.arange(100, 104), kept).all() for kept in llm.kept_positions()[:, 0])


def test_a_conversation_goes_on_from_it(
    make: Make, prompt: list[int], greedy: Callable[..., list[int]]
) -> None:
    llm = make(CONFIG)
    assert len(greedy(llm, prompt, 100)) == 100  # beyond the cells: rows are evicted again
    assert len(llm.evictions) == 1
    assert llm.evictions[0].n_selected == 0


def test_without_two_groups_there_is_nothing_between_them(make: Make, model_path: str) -> None:
    with refused(UnsupportedModelError, model_path):
        make(replace(CONFIG, layer_group=6))
    llm = make(CONFIG)
    with refused(ConfigError, "the new settings"):
        llm.set_snapkv(replace(CONFIG, layer_group=9))


def test_it_finds_what_later_layers_look_up() -> None:
    """Of the needle model the third layer of six knows nothing of the answer: only a look ahead finds it."""
    path = needle_model()
    wanted = Wanted(lengths=(2048,), n_documents=2, n_questions=2)
    cases = list(get("needle").cases(open_tokens(path), wanted))
    config = replace(CONFIG, budget=256, window_size=32, select_share=0.25, select_min=256)
    llm = Llama(str(path), n_ctx=2300, snapkv=config, n_threads=1, n_threads_batch=1, verbose=False)
    n_right = 0
    for case in cases:
        llm.set_question(case.question)
        stats = llm.prefill(list(case.prompt))
        assert (stats.n_layer_all, stats.n_selected < 600) == (3, True)
        logits = llm.logits_for([*case.after, *case.gold[:-1]], len(case.gold))
        n_right += (logits.argmax(axis=1) == case.gold).all()
    llm.close()
    assert n_right >= len(cases) - 1
