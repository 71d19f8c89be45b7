"""The paper's method keeps what NVIDIA kvpress 0.5.4 keeps (tests/kvpress/golden.py has written it)."""

from pathlib import Path

import numpy as np
import pytest

from snapkv_local import policies
from snapkv_local.policies import LayerView, PromptView, reference

with np.load(Path(__file__).parent / "kvpress-kept.npz") as file:
    KEPT = dict(file)
CASES = [name.removeprefix("kept-") for name in KEPT if name.startswith("kept-")]


@pytest.mark.parametrize("case", CASES)
def test_the_reference_and_the_policy_keep_what_kvpress_keeps(case):
    window, kernel_size, n_keep = map(int, case.split("-"))
    policy = policies.parse(f"snapkv-paper:kernel_size={kernel_size}")
    layers = zip(KEPT[f"q-{case}"], KEPT[f"k-{case}"], KEPT[f"kept-{case}"], strict=True)
    for il, (q, k, kept) in enumerate(layers):
        scale = q.shape[-1] ** -0.5
        score = reference.scores(q, k, scale, kernel_size=kernel_size)
        np.testing.assert_array_equal(reference.select(score, n_keep), kept)
        layer = LayerView(il, len(KEPT[f"k-{case}"]), q, k, k, scale, 0.0)
        view = PromptView(k.shape[1], window)
        np.testing.assert_array_equal(policy.select(layer, view, n_keep), kept)


def test_another_kernel_keeps_others():
    case = CASES[0]
    q, k = KEPT[f"q-{case}"][0], KEPT[f"k-{case}"][0]
    _, kernel_size, n_keep = map(int, case.split("-"))
    score = reference.scores(q, k, q.shape[-1] ** -0.5, kernel_size=kernel_size + 2)
    assert (reference.select(score, n_keep) != KEPT[f"kept-{case}"][0]).any()
