"""SnapKVConfig accepts what the engine can do, and says what is wrong with the rest."""

import dataclasses
import re
from fractions import Fraction

import numpy as np
import pytest

from snapkv_local import SnapKVConfig
from snapkv_local.errors import ConfigError, SnapKVError


def test_defaults():
    assert dataclasses.asdict(SnapKVConfig()) == {
        "budget": 2048,
        "ratio": None,
        "window": 32,
        "voters": "question",
        "kernel": 21,
        "pool": "trim",
        "reduce": "max",
        "own": 0.25,
        "sinks": 0,
        "min_coverage": None,
        "max_budget": None,
        "room": 1024,
        "layer_group": "auto",
        "hidden": "auto",
        "chunk": "auto",
        "ops": "auto",
        "vault": "off",
        "vault_limit": None,
        "policy": "snapkv",
        "protect_system": False,
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 100, "ratio": 0.5}, "budget=100, ratio=0.5: both say how much to keep"),
        ({"budget": 32}, "budget=32: leaves no row to select: window=32 and sinks=0 take 32"),
        ({"budget": 36, "sinks": 4}, "window=32 and sinks=4 take 36 already"),
        ({"budget": 0}, "budget=0: is no whole number from 1"),
        ({"budget": -1}, "budget=-1: is no whole number"),
        ({"budget": 512.0}, "budget=512.0: is no whole number"),
        ({"budget": True}, "budget=True: is no whole number"),
        ({"budget": "512"}, "budget='512': is no whole number"),
        ({"budget": 2**32}, "budget=4294967296: is no whole number"),
        ({"ratio": 0.0}, "ratio=0.0: is no number above 0, up to 1"),
        ({"ratio": -0.1}, "ratio=-0.1: is no number above 0, up to 1"),
        ({"ratio": 1.01}, "ratio=1.01: is no number above 0, up to 1"),
        ({"ratio": float("nan")}, "ratio=nan: is no number above 0, up to 1"),
        ({"window": 0}, "window=0: is no whole number from 1"),
        ({"kernel": 4}, "kernel=4: an even number has no middle"),
        ({"kernel": 0}, "kernel=0: is no whole number from 1"),
        ({"pool": "mean"}, "pool='mean': is not known; choose one of avg, max, trim"),
        ({"voters": None}, "voters=None: is no whole number from 1"),
        (
            {"voters": "words"},
            "voters='words': is no whole number from 1 to 4294967295; give one, or question",
        ),
        ({"voters": 33}, "voters=33: are more than the window's 32 rows"),
        ({"reduce": "mean"}, "reduce='mean': is not known; choose one of sum, max"),
        ({"own": -0.1}, "own=-0.1: is no number from 0 to 1000; give one, such as 0.25"),
        ({"own": 1000.1}, "own=1000.1: is no number from 0 to 1000"),
        ({"own": float("nan")}, "own=nan: is no number"),
        ({"own": float("inf")}, "own=inf: is no number"),
        ({"own": True}, "own=True: is no number"),
        ({"own": "0.25"}, "own='0.25': is no number"),
        ({"own": None}, "own=None: is no number"),
        ({"sinks": -1}, "sinks=-1: is no whole number from 0"),
        ({"room": 0}, "room=0: is no whole number from 1"),
        ({"layer_group": 0}, "layer_group=0: is no whole number from 1"),
        ({"layer_group": "all"}, "layer_group='all': is no whole number"),
        ({"hidden": "disk"}, "hidden='disk': is not known; choose one of auto, device, host"),
        ({"chunk": 0}, "chunk=0: is no whole number from 1"),
        ({"chunk": "all"}, "chunk='all': is no whole number"),
        ({"ops": "cuda"}, "ops='cuda': is not known; choose one of auto, fused, stock"),
        ({"policy": "best"}, "policy='best': no such policy; choose one of snapkv"),
        ({"policy": "question:size=3"}, "'size=3': is no option of question; its options are"),
        ({"policy": "question:kernel=4"}, "policy question, kernel=4: an even number"),
        # snapkv's options are settings, with other defaults than its text has
        (
            {"policy": "snapkv:kernel=13"},
            "give policy='snapkv' and voters=32, kernel=13, pool='avg', reduce='sum', own=0, sinks=0",
        ),
        (
            {"policy": "snapkv:window=64+pool=max", "budget": 128},
            "give policy='snapkv' and window=64, voters=64, kernel=5, pool='max'",
        ),
        (
            {"policy": "snapkv:pool=trim+own=0.5"},
            "kernel=5, pool='trim', reduce='sum', own=0.5, sinks=0",
        ),
        ({"policy": "snapkv:kernel=5"}, "snapkv runs in the engine"),
        ({"policy": "snapkv:prefer=question"}, "voters='question', kernel=5"),
        ({"policy": "pyramid"}, "choose what it shares rows out for, snapkv"),
        ({"policy": "adaptive:of=value"}, "choose what it shares rows out for, value"),
        ({"policy": 3}, "policy=3: is of the wrong type; give a text such as 'snapkv'"),
        ({"vault": 3}, "vault=3: is of the wrong type"),
        ({"vault": "no such folder"}, "vault='no such folder': is no folder"),
        ({"min_coverage": 0.9, "max_budget": 9}, "max_budget=9: is less than budget=2048"),
        ({"min_coverage": "0.9"}, "min_coverage='0.9': is no number above 0, up to 1"),
        # settings that would do nothing
        ({"policy": "value", "kernel": 5}, "kernel=5: is a setting of snapkv, and policy='value'"),
        ({"policy": "random", "voters": 8}, "leave it out; random has options of its own: seed"),
        ({"policy": "value", "own": 0}, "own=0.0: is a setting of snapkv, and policy='value'"),
        ({"policy": "value", "pool": "avg"}, "pool='avg': is a setting of snapkv"),
        ({"policy": "value", "sinks": 4}, "sinks=4: is a setting of snapkv"),
        ({"policy": "value", "min_coverage": 0.9}, "min_coverage=0.9: is a setting of snapkv"),
        ({"policy": "streaming", "budget": 36}, "the 4 rows that streaming always keeps"),
        ({"policy": "streaming:sinks=9", "budget": 41}, "the 9 rows that streaming:sinks=9"),
        ({"policy": "value:window=60", "budget": 60}, "28 rows that value:window=60 always keeps"),
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
    "settings",
    [
        {"budget": 33},
        {"budget": 37, "sinks": 4},
        {"ratio": 1.0},
        {"ratio": 1e-6},
        {"kernel": 1},
        {"voters": 16},
        {"own": 0},
        {"own": 1000},
        {"layer_group": 1},
        {"chunk": 1},
        {"window": 1, "budget": 2},
    ],
)
def test_accepts_the_borders(settings):
    config = SnapKVConfig(**settings)
    assert {name: getattr(config, name) for name in settings} == settings


def test_a_ratio_leaves_the_budget_empty():
    assert SnapKVConfig(ratio=0.5).budget is None


def test_numpy_integers_become_ints():
    # ctypes takes no NumPy integer for a field
    assert type(SnapKVConfig(budget=np.int64(512)).budget) is int  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "number", [1, np.float32(0.5), np.float64(0.1), np.int64(2), Fraction(1, 8)]
)
def test_numbers_of_other_types_become_floats(number):
    config = SnapKVConfig(own=number)
    assert type(config.own) is float
    assert config.own == number


def test_the_papers_form():
    config = SnapKVConfig.paper(budget=512)
    form = (config.window, config.n_voters(), config.kernel, config.pool, config.reduce, config.own)
    assert form == (32, 32, 5, "avg", "sum", 0.0)
    assert SnapKVConfig.paper(pool="max", own=0.5, kernel=7, window=16) == SnapKVConfig(
        pool="max", own=0.5, kernel=7, window=16, voters=16, reduce="sum"
    )


def test_is_frozen_and_hashable():
    config = SnapKVConfig(budget=512)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.budget = 256  # type: ignore[misc]
    assert {config: "same"}[SnapKVConfig(budget=512)] == "same"


def test_an_error_is_a_value_error_too_and_has_three_parts():
    with pytest.raises(ValueError) as caught:
        SnapKVConfig(kernel=4)
    assert isinstance(caught.value, SnapKVError)
    assert caught.value.subject == "kernel=4"
    assert caught.value.problem.startswith("an even number")
    assert caught.value.cure == "use 3 or 5"


@pytest.mark.parametrize(
    ("config", "spec"),
    [
        (SnapKVConfig(), "snapkv:kernel=21+own=0.25+pool=trim+reduce=max+prefer=question+window=16"),
        (SnapKVConfig.paper(sinks=4), "snapkv:sinks=4+window=32"),
        (SnapKVConfig(window=8, pool="avg"), "snapkv:kernel=21+own=0.25+reduce=max+prefer=question+window=8"),
    ],
)  # fmt: skip
def test_as_a_policy(config, spec):
    assert config.as_policy().spec == spec
