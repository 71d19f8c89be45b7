"""What beside the votes decides which rows stay: coverage that is asked for, protected positions."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from snapkv_local import Llama, SnapKVConfig
from snapkv_local.errors import ConfigError

WINDOW = 16
CONFIG = SnapKVConfig(budget=96, window_size=WINDOW, decode_cells=64)


@pytest.mark.parametrize("ops", ["fused", "ggml"])
def test_rows_grow_until_the_coverage_is_reached(
    make: Callable[..., Llama], prompt: list[int], ops: str
) -> None:
    plain = make(replace(CONFIG, ops=ops))
    below = plain.prefill(prompt)
    asked = below.coverage + 0.3 * (1 - below.coverage)

    llm = make(replace(CONFIG, ops=ops, min_coverage=asked, max_budget=250))
    stats = llm.prefill(prompt)
    assert 96 < stats.n_kept < 250
    assert asked <= stats.coverage < asked + 0.01
    np.testing.assert_allclose(llm.coverage().mean(), stats.coverage, rtol=1e-5)

    # no row more than is needed, and what stays is what such a budget keeps
    same = make(replace(CONFIG, ops=ops, budget=stats.n_kept))
    assert same.prefill(prompt).coverage == pytest.approx(stats.coverage, rel=1e-6)
    np.testing.assert_array_equal(llm.kept_positions(), same.kept_positions())
    np.testing.assert_array_equal(llm.logits_for(prompt[:20]), same.logits_for(prompt[:20]))
    fewer = make(replace(CONFIG, ops=ops, budget=stats.n_kept - 1))
    assert fewer.prefill(prompt).coverage < asked


def test_coverage_that_the_budget_has_changes_nothing(
    make: Callable[..., Llama], llm: Llama, prompt: list[int]
) -> None:
    coverage = llm.prefill(prompt).coverage
    easy = make(replace(CONFIG, min_coverage=coverage - 0.01))
    assert easy.prefill(prompt).n_kept == 96
    np.testing.assert_array_equal(easy.kept_positions(), llm.kept_positions())


def test_what_cannot_be_reached_ends_at_the_most(
    make: Callable[..., Llama], prompt: list[int]
) -> None:
    llm = make(replace(CONFIG, min_coverage=1.0, max_budget=120))
    stats = llm.prefill(prompt)
    assert stats.n_kept == 120
    assert stats.coverage < 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_coverage": 0.0}, "above 0"),
        ({"min_coverage": 1.5}, "above 0"),
        ({"max_budget": 300}, "without min_coverage"),
        ({"min_coverage": 0.9, "max_budget": 50}, "max_budget=50"),
        ({"min_coverage": 0.9, "budget": None, "keep_ratio": 0.5}, "give a budget"),
    ],
)
def test_settings_that_say_nothing(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, **settings)


def test_protected_positions_stay(make: Callable[..., Llama], prompt: list[int]) -> None:
    llm = make()
    llm.prefill(prompt)
    before = llm.kept_positions()
    spans = [(30, 45), (200, 210), (280, 290)]
    inside = {*range(30, 45), *range(200, 210), *range(280, 284)}
    assert not inside <= set(before[0, 0])

    llm.set_protected(spans)
    llm.prefill(prompt)
    kept = llm.kept_positions()
    assert kept.shape == before.shape
    assert all(inside <= set(head) for layer in kept for head in layer)
    # the others are the best of the others
    for old, new in zip(before.reshape(-1, 80), kept.reshape(-1, 80), strict=True):
        assert set(new) - inside <= set(old)

    # and they stay when rows are evicted again
    for _ in zip(range(100), llm.generate(prompt, temp=0.0), strict=False):
        pass
    assert llm.evictions
    inside |= set(range(284, 290))  # no longer in the window
    assert all(inside <= set(head) for layer in llm.kept_positions() for head in layer)

    llm.set_protected([])
    llm.prefill(prompt)
    np.testing.assert_array_equal(llm.kept_positions(), before)


def test_what_cannot_be_protected(make: Callable[..., Llama], prompt: list[int]) -> None:
    llm = make()
    with pytest.raises(ConfigError, match="not a range"):
        llm.set_protected([(10, 5)])
    llm.set_protected([(0, 100)])
    with pytest.raises(ConfigError, match=r"hold 100 protected ones, .* or protect less"):
        llm.prefill(prompt)
    llm.set_protected([])
    assert llm.prefill(prompt).n_kept == 96
