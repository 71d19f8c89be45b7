"""SnapKVConfig accepts what the engine can do, and says what is wrong with the rest."""

import dataclasses
import re
from fractions import Fraction

import numpy as np
import pytest
from refused import refused

from snapkv_local import SnapKVConfig
from snapkv_local.errors import ConfigError, SnapKVError


def test_defaults():
    assert dataclasses.asdict(SnapKVConfig()) == {
        "budget": 2048,
        "keep_ratio": None,
        "window_size": 32,
        "observation": "question",
        "kernel_size": 21,
        "pooling": "nosink",
        "aggregation": "max",
        "self_weight": 0.25,
        "n_sink": 0,
        "min_coverage": None,
        "max_budget": None,
        "decode_cells": 1024,
        "layer_group": "auto",
        "hidden_state": "auto",
        "n_ubatch": "auto",
        "ops": "auto",
        "vault": "off",
        "vault_limit": None,
        "prefill": "exact",
        "select_share": 0.2,
        "select_min": 1024,
        "select_depth": 0.375,
        "select_settled": 0.3,
        "recall": False,
        "recall_every": "auto",
        "recall_queries": 4,
        "recall_rows": 8192,
        "recall_delay": "auto",
        "recall_margin": 2.0,
        "policy": "snapkv",
        "protect_system": False,
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"budget": 100, "keep_ratio": 0.5},
            "budget=100, keep_ratio=0.5: both say how much to keep",
        ),
        ({"budget": 32}, "budget=32: leaves no row to select: window_size=32 and n_sink=0 take 32"),
        ({"budget": 36, "n_sink": 4}, "window_size=32 and n_sink=4 take 36 already"),
        ({"budget": 0}, "budget=0: is not a whole number from 1 to 4294967295; give one, or None"),
        (
            {"keep_ratio": 0.0},
            "keep_ratio=0.0: is not a number above 0, up to 1; give the share of the prefix to keep, "
            "such as 0.1",
        ),
        (
            {"kernel_size": 4},
            "kernel_size=4: an even number has no middle, and would shift the scores; use 3 or 5",
        ),
        ({"pooling": "mean"}, "pooling='mean': is not known; choose one of avg, max, nosink"),
        (
            {"pooling": "trim"},
            "pooling='trim': is no longer there; use 'nosink', which took its place",
        ),
        (
            {"observation": "words"},
            "observation='words': is not a whole number from 1 to 4294967295; give one, or question",
        ),
        ({"observation": 33}, "observation=33: are more than the window's 32 rows"),
        ({"aggregation": "mean"}, "aggregation='mean': is not known; choose one of sum, max"),
        (
            {"self_weight": -0.1},
            "self_weight=-0.1: is not a number from 0 to 1000; give one, such as 0.25",
        ),
        ({"n_sink": -1}, "n_sink=-1: is not a whole number from 0"),
        ({"layer_group": 0}, "layer_group=0: is not a whole number from 1"),
        ({"layer_group": "all"}, "layer_group='all': is not a whole number"),
        (
            {"hidden_state": "disk"},
            "hidden_state='disk': is not known; choose one of auto, device, host",
        ),
        ({"n_ubatch": 0}, "n_ubatch=0: is not a whole number from 1"),
        ({"n_ubatch": "all"}, "n_ubatch='all': is not a whole number"),
        ({"ops": "cuda"}, "ops='cuda': is not known; choose one of auto, fused, ggml"),
        ({"policy": "best"}, "policy='best': is not a policy; choose one of snapkv"),
        ({"policy": "question:size=3"}, "'size=3': is not an option of question; its options are"),
        # what the engine runs has its options as settings
        ({"policy": "snapkv:kernel_size=13"}, "give policy='snapkv' and kernel_size=13"),
        (
            {"policy": "snapkv-paper"},
            "policy='snapkv-paper': runs in the engine, which has its options as settings; give "
            "policy='snapkv' and kernel_size=5, self_weight=0, pooling='avg', aggregation='sum', "
            "observation=32",
        ),
        (
            {"policy": "snapkv:observation=64+pooling=max", "budget": 128},
            "give policy='snapkv' and window_size=64, pooling='max', observation=64",
        ),
        (
            {"policy": "snapkv:pooling=nosink+self_weight=0.5"},
            "give policy='snapkv' and self_weight=0.5",
        ),
        ({"policy": "pyramid"}, "choose what it shares rows out for, snapkv-paper"),
        ({"policy": "adaptive:of=value"}, "choose what it shares rows out for, value"),
        ({"policy": 3}, "policy=3: is of the wrong type; give a text such as 'snapkv'"),
        (
            {"recall": True},
            "recall=True, vault='off': rows come back from the vault, and there is none",
        ),
        (
            {"recall_every": 16, "recall_queries": 17},
            "recall_queries=17: are more than the 16 tokens between two recalls",
        ),
        (
            {"recall_every": 16, "recall_delay": 16},
            "recall_delay=16: is not less than the 16 tokens between two recalls",
        ),
        (
            {"recall": True, "vault": "ram", "policy": "value"},
            "recall=True, policy='value': the votes of a recall are the engine's",
        ),
        ({"prefill": "fast"}, "prefill='fast': is not known; choose one of exact, selective"),
        (
            {"prefill": "selective", "vault": "ram"},
            "prefill='selective', vault='ram': the vault would lack the rows that later layers have not "
            "computed",
        ),
        (
            {"prefill": "selective", "policy": "value"},
            "prefill='selective', policy='value': the policy is shown all rows of a layer",
        ),
        ({"select_share": 0}, "select_share=0: is not a number above 0, up to 1"),
        ({"select_depth": 1.5}, "select_depth=1.5: is not a number from 0 to 1"),
        ({"vault": "no such folder"}, "vault='no such folder': is not a folder"),
        ({"min_coverage": 0.9, "max_budget": 9}, "max_budget=9: is less than budget=2048"),
        ({"min_coverage": "0.9"}, "min_coverage='0.9': is not a number above 0, up to 1"),
        # settings that would do nothing
        (
            {"policy": "value", "kernel_size": 5},
            "kernel_size=5: is a setting of snapkv, and policy='value' chooses the rows; leave it "
            "out; value has options of its own: aggregation, kernel_size",
        ),
        (
            {"policy": "random", "observation": 8},
            "leave it out; random has options of its own: n_sink, seed",
        ),
        ({"policy": "value", "n_sink": 4}, "n_sink=4: is a setting of snapkv"),
        ({"policy": "streaming", "budget": 36}, "the 4 rows that streaming always keeps"),
        ({"policy": "streaming:n_sink=9", "budget": 41}, "the 9 rows that streaming:n_sink=9"),
        (
            {"policy": "value:observation=60", "budget": 60},
            "28 rows that value:observation=60 always keeps",
        ),
        (
            {"protect_system": "yes"},
            "protect_system='yes': is of the wrong type; give True or False",
        ),
    ],
)
def test_refuses(settings, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        SnapKVConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "subject"),
    [
        ({"budget": -1}, "budget=-1"),
        ({"budget": 512.0}, "budget=512.0"),
        ({"budget": True}, "budget=True"),
        ({"budget": "512"}, "budget='512'"),
        ({"budget": 2**32}, "budget=4294967296"),
        ({"keep_ratio": -0.1}, "keep_ratio=-0.1"),
        ({"keep_ratio": 1.01}, "keep_ratio=1.01"),
        ({"keep_ratio": float("nan")}, "keep_ratio=nan"),
        ({"window_size": 0}, "window_size=0"),
        ({"kernel_size": 0}, "kernel_size=0"),
        ({"observation": None}, "observation=None"),
        ({"self_weight": 1000.1}, "self_weight=1000.1"),
        ({"self_weight": float("nan")}, "self_weight=nan"),
        ({"self_weight": float("inf")}, "self_weight=inf"),
        ({"self_weight": True}, "self_weight=True"),
        ({"self_weight": "0.25"}, "self_weight='0.25'"),
        ({"self_weight": None}, "self_weight=None"),
        ({"decode_cells": 0}, "decode_cells=0"),
        ({"policy": "question:kernel_size=4"}, "policy question, kernel_size=4"),
        ({"vault": 3}, "vault=3"),
        ({"policy": "value", "self_weight": 0}, "self_weight=0.0"),
        ({"policy": "value", "pooling": "avg"}, "pooling='avg'"),
        ({"policy": "value", "min_coverage": 0.9}, "min_coverage=0.9"),
    ],
)
def test_refuses_the_like(settings, subject):
    with refused(ConfigError, subject):
        SnapKVConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"budget": 33},
        {"budget": 37, "n_sink": 4},
        {"keep_ratio": 1.0},
        {"keep_ratio": 1e-6},
        {"kernel_size": 1},
        {"observation": 16},
        {"self_weight": 0},
        {"self_weight": 1000},
        {"layer_group": 1},
        {"n_ubatch": 1},
        {"window_size": 1, "budget": 2},
    ],
)
def test_accepts_the_borders(settings):
    config = SnapKVConfig(**settings)
    assert {name: getattr(config, name) for name in settings} == settings


def test_a_ratio_leaves_the_budget_empty():
    assert SnapKVConfig(keep_ratio=0.5).budget is None


def test_numpy_integers_become_ints():
    # ctypes takes no NumPy integer for a field
    assert type(SnapKVConfig(budget=np.int64(512)).budget) is int  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "number", [1, np.float32(0.5), np.float64(0.1), np.int64(2), Fraction(1, 8)]
)
def test_numbers_of_other_types_become_floats(number):
    config = SnapKVConfig(self_weight=number)
    assert type(config.self_weight) is float
    assert config.self_weight == number


def test_the_papers_form():
    config = SnapKVConfig.paper(budget=512)
    form = (
        config.window_size,
        config.n_voters(),
        config.kernel_size,
        config.pooling,
        config.aggregation,
        config.self_weight,
    )
    assert form == (32, 32, 5, "avg", "sum", 0.0)
    assert SnapKVConfig.paper(
        pooling="max", self_weight=0.5, kernel_size=7, window_size=16
    ) == SnapKVConfig(
        pooling="max",
        self_weight=0.5,
        kernel_size=7,
        window_size=16,
        observation=16,
        aggregation="sum",
    )


def test_is_frozen_and_hashable():
    config = SnapKVConfig(budget=512)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.budget = 256  # type: ignore[misc]
    assert {config: "same"}[SnapKVConfig(budget=512)] == "same"


def test_an_error_is_a_value_error_too_and_has_three_parts():
    with pytest.raises(ValueError) as caught:
        SnapKVConfig(kernel_size=4)
    assert isinstance(caught.value, SnapKVError)
    assert caught.value.subject == "kernel_size=4"
    assert caught.value.problem.startswith("an even number")
    assert caught.value.cure == "use 3 or 5"


@pytest.mark.parametrize(
    ("config", "spec"),
    [
        (SnapKVConfig(), "snapkv"),
        (
            SnapKVConfig.paper(n_sink=4),
            "snapkv:n_sink=4+kernel_size=5+self_weight=0+pooling=avg+aggregation=sum+observation=32",
        ),
        (SnapKVConfig(window_size=8, pooling="avg"), "snapkv:pooling=avg"),
    ],
)
def test_as_a_policy(config, spec):
    assert config.as_policy().spec == spec
