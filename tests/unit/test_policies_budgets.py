"""How policies share rows out over layers."""

from itertools import product

import numpy as np
import pytest

from snapkv_local import policies
from snapkv_local.errors import ConfigError
from snapkv_local.policies import LayerView, PromptView, reference

N, WINDOW = 203, 16
M = N - WINDOW


def make_layers(n_layer: int = 5) -> list[LayerView]:
    """Layers that look at ever fewer rows."""
    rng = np.random.default_rng(n_layer)
    layers = []
    for i in range(n_layer):
        q = rng.normal(size=(4, WINDOW, 8)).astype(np.float32) * (0.2 + 0.8 * i)
        k, v = (rng.normal(size=(2, N, 8)).astype(np.float32) for _ in range(2))
        layers.append(LayerView(i, n_layer, q, k, v, 0.5, 0.0))
    return layers


def prompt_of(**settings: object) -> PromptView:
    return PromptView(N, WINDOW, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", ["snapkv", "streaming", "random", "value", "sentence"])
def test_layers_have_equal_budgets_unless_a_policy_says_otherwise(spec):
    assert policies.parse(spec).rows(40, make_layers(), prompt_of()) == [40] * 5


@pytest.mark.parametrize(
    ("spec", "n_layer", "n_rows"),
    list(
        product(
            ["pyramid", "pyramid:beta=1.5", "pyramid:of=snapkv-paper:n_sink=4", "adaptive"],
            [1, 2, 3, 7, 30],
            [4, 5, 31, 64, 100, 150, 186, M],
        )
    ),
)
def test_every_budget_is_whole_and_in_range(spec, n_layer, n_rows):
    policy, layers, prompt = policies.parse(spec), make_layers(n_layer), prompt_of()
    rows = policy.rows(n_rows, layers, prompt)
    assert len(rows) == n_layer
    assert all(type(n) is int and len(policy.always(prompt)) <= n <= M for n in rows)
    assert sum(rows) <= n_rows * n_layer
    if policy.name == "pyramid":
        assert sum(rows) == n_rows * n_layer
    else:
        # all but what no layer can use without more than its share
        assert sum(rows) >= n_rows * n_layer - n_layer
    for layer, n in zip(layers, rows, strict=True):
        assert policy.select(layer, prompt, n).shape == (2, n)


# pyramid


@pytest.mark.parametrize(
    ("spec", "n_rows", "rows"),
    [
        # 60 / 20 in the last layer, as much above the mean in the first, and equal steps between
        ("pyramid:beta=20", 60, [117, 88, 60, 31, 3]),
        ("pyramid:beta=2", 60, [90, 75, 60, 45, 30]),
        ("pyramid:beta=1", 60, [60] * 5),
        # the first layer has no more than 187 rows
        ("pyramid:beta=20", 127, [187, 157, 127, 97, 67]),
        # no layer has fewer than what is protected
        ("pyramid:beta=20+of=snapkv-paper:n_sink=20", 60, [100, 80, 60, 40, 20]),
    ],
)
def test_pyramid(spec, n_rows, rows):
    found = policies.parse(spec).rows(n_rows, make_layers(), prompt_of())
    assert np.abs(np.subtract(found, rows)).max() <= 1
    assert sum(found) == 5 * n_rows


def test_the_rows_of_a_layer_are_the_inner_policys():
    layer, prompt = make_layers()[2], prompt_of(protected=((50, 53),))
    inner = policies.parse("value:kernel_size=3+n_sink=2")
    for outer in ("pyramid", "adaptive"):
        policy = policies.parse(f"{outer}:of=value:n_sink=2+kernel_size=3")
        kept = policy.select(layer, prompt, 33)
        np.testing.assert_array_equal(kept, inner.select(layer, prompt, 33))


# adaptive


def held(layer: LayerView, n_rows: int) -> float:
    """Share of the window's attention on the best rows and the window, mean over KV heads."""
    scores = reference.scores(layer.q, layer.k, layer.scale)
    kept = reference.select(scores, n_rows)
    return float(reference.coverage(layer.q, layer.k, layer.scale, kept).mean())


def test_adaptive_layers_hold_the_same_share():
    layers = make_layers()
    rows = policies.parse("adaptive:least=0").rows(60, layers, prompt_of())
    assert rows[0] > 1.5 * rows[-1]  # the layers that look at many rows get many
    shares = [held(layer, n) for layer, n in zip(layers, rows, strict=True)]
    # a row more would be above all the others' share, a row less below
    assert max(held(layer, n - 1) for layer, n in zip(layers, rows, strict=True)) < min(shares)
    even = [held(layer, 60) for layer in layers]
    assert min(even) < min(shares)


def test_adaptive_stops_at_its_share():
    layers, prompt = make_layers(), prompt_of()
    rows = policies.parse("adaptive:share=0.5+least=0").rows(150, layers, prompt)
    for layer, n in zip(layers, rows, strict=True):
        assert held(layer, n) >= 0.5
        assert n == 0 or held(layer, n - 1) < 0.5
    assert sum(rows) < 150 * len(layers)
    # where the rows do not suffice, the share is lower, and the same for all
    few = policies.parse("adaptive:share=0.5+least=0").rows(10, layers, prompt)
    assert few == policies.parse("adaptive:least=0").rows(10, layers, prompt)


def test_adaptive_leaves_each_layer_its_safeguard():
    layers = make_layers()
    free = policies.parse("adaptive:least=0").rows(40, layers, prompt_of())
    assert min(free) < 32
    safe = policies.parse("adaptive:least=0.8").rows(40, layers, prompt_of())
    assert min(safe) == 32
    assert policies.parse("adaptive:least=1").rows(40, layers, prompt_of()) == [40] * 5


def test_adaptive_protects():
    prompt = prompt_of(protected=((10, 40),))
    rows = policies.parse("adaptive:least=0").rows(31, make_layers(), prompt)
    assert min(rows) >= 30
    assert sum(rows) <= 31 * 5


@pytest.mark.parametrize("name", ["pyramid", "adaptive"])
def test_budgets_that_do_not_hold_what_is_protected_are_refused(name):
    policy, prompt = policies.parse(name), prompt_of(protected=((10, 40),))
    with pytest.raises(ConfigError, match="n_rows=29: does not hold 30 protected rows"):
        policy.rows(29, make_layers(), prompt)
    with pytest.raises(ConfigError, match=f"n_rows={M + 1}: the prompt has {M} rows"):
        policy.rows(M + 1, make_layers(), prompt)
