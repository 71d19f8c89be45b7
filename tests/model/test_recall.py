"""Recall while answering: rows of the vault come back between two tokens, and the cache stays as large."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from refused import refused

from snapkv_local import Llama, SnapKVConfig
from snapkv_local.errors import ConfigError

OFF = SnapKVConfig(budget=96, window_size=16, decode_cells=64, vault="ram", recall_every=8)
CONFIG = replace(OFF, recall=True)

Make = Callable[..., Llama]


def test_rows_come_back_every_so_many_tokens(make: Make, prompt: list[int]) -> None:
    off, llm = make(OFF), make(CONFIG)
    off.prefill(prompt)
    llm.prefill(prompt)
    before = llm.kept_positions()
    np.testing.assert_array_equal(before, off.kept_positions())
    answer = prompt[40:60]
    found, expected = llm.logits_for(answer), off.logits_for(answer)
    # of the first ones, which a batch of eight has; with recall in a batch of its own
    np.testing.assert_allclose(found[:8], expected[:8], atol=2e-2, rtol=0)
    assert np.abs(found[8:] - expected[8:]).max() > 0
    recalls = llm.recalls()
    assert [recall.pos for recall in recalls] == [len(prompt) + 7, len(prompt) + 15]
    kept = llm.kept_positions()
    assert kept.shape == before.shape and (np.diff(kept) > 0).all()
    gone = [
        set(a) - set(b) for a, b in zip(before.reshape(-1, 80), kept.reshape(-1, 80), strict=True)
    ]
    assert 0 < sum(map(len, gone)) <= sum(recall.n_rows for recall in recalls)
    assert all(recall.n_bytes > 0 and recall.seconds_rank > 0 for recall in recalls)
    assert off.recalls() == []

    off.prefill(prompt)
    llm.prefill(prompt)
    assert llm.recalls() == []
    np.testing.assert_array_equal(llm.kept_positions(), off.kept_positions())


def test_a_session_saved_after_a_recall_goes_on(make: Make, prompt: list[int], tmp_path) -> None:
    llm = make(CONFIG)
    llm.prefill(prompt)
    llm.logits_for(prompt[40:52])
    assert llm.recalls()
    llm.save_session(tmp_path / "session")
    other = make(CONFIG)
    other.load_session(tmp_path / "session")
    np.testing.assert_array_equal(other.kept_positions(), llm.kept_positions())
    np.testing.assert_array_equal(other.logits_for([7]), llm.logits_for([7]))


@pytest.mark.parametrize(
    ("arguments", "subject"),
    [({"n_parallel": 2}, "recall=True, n_parallel=2"), ({"draft_model": object()}, "draft_model")],
)
def test_what_a_recall_does_not_go_with(
    make: Make, arguments: dict[str, object], subject: str
) -> None:
    with refused(ConfigError, subject):
        make(CONFIG, **arguments)
