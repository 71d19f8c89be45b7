"""How many rows each policy keeps."""

import itertools
import re
from pathlib import Path

import pytest

from snapkv_local import SnapKVConfig, policies
from snapkv_local.policies.snapkv import native_ratio

SHAPES = [1, 31, 32, 33, 64, 65, 500, 131072]
SETTINGS = [
    {"budget": 64},
    {"budget": 64, "window": 8, "sinks": 4},
    {"budget": 200000},
    {"ratio": 0.1},
    {"ratio": 0.001, "sinks": 4},
    {"ratio": 1.0},
]


@pytest.mark.parametrize(
    ("policy", "settings", "n_prompt"),
    list(itertools.product(policies.POLICIES, SETTINGS, SHAPES)),
)
def test_keeps_the_window_and_never_more_than_the_prompt(policy, settings, n_prompt):
    config = SnapKVConfig(**settings, policy=policy)
    n_kept = config.n_kept(n_prompt)
    assert min(n_prompt, config.window + config.sinks) <= n_kept <= n_prompt
    if config.budget is not None:
        assert n_kept <= config.budget or n_prompt <= config.window


@pytest.mark.parametrize("policy", policies.POLICIES.values(), ids=lambda policy: policy.name)
def test_is_registered_under_its_name_and_names_its_source(policy):
    assert policies.get(policy.name) is policy
    assert re.match(r"arXiv \d{4}\.\d{5}, section \d", policy.source)


def test_each_file_of_the_folder_is_registered():
    folder = Path(policies.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "policy"}
    assert files == set(policies.POLICIES)


@pytest.mark.parametrize(
    ("settings", "n_prompt", "n_kept"),
    [
        ({"budget": 64}, 63, 63),
        ({"budget": 64}, 64, 64),
        ({"budget": 64}, 65, 64),
        ({"budget": 64, "sinks": 4}, 1000, 64),
        # floor(p * (n - w)) of the prefix, and the window
        ({"ratio": 0.1}, 1032, 100 + 32),
        ({"ratio": 0.1}, 1031, 99 + 32),
        ({"ratio": 0.7}, 532, 350 + 32),
        ({"ratio": 0.001}, 132, 0 + 32),
        ({"ratio": 0.001, "sinks": 4}, 132, 4 + 32),
        ({"ratio": 1.0}, 1000, 1000),
        # a prompt within the window has no prefix to evict from
        ({"ratio": 0.1}, 32, 32),
        ({"ratio": 0.1}, 7, 7),
        ({"ratio": 0.1, "sinks": 50}, 40, 40),
    ],
)
def test_snapkv_keeps(settings, n_prompt, n_kept):
    assert SnapKVConfig(**settings).n_kept(n_prompt) == n_kept


@pytest.mark.parametrize("percent", range(1, 101))
def test_a_ratio_of_whole_percents_keeps_the_whole_number(percent):
    # percent / 100 is mostly below or above itself in binary: 0.29 * 100 = 28.999999999999996
    assert SnapKVConfig(ratio=percent / 100).n_kept(100 + 32) == percent + 32
    assert SnapKVConfig(ratio=percent / 100).n_kept(50000 + 32) == 500 * percent + 32


def test_the_native_ratio_is_within_a_float32_step_above():
    for ratio in (0.1, 0.29, 0.5, 0.7, 1.0):
        assert ratio <= native_ratio(ratio) <= ratio * (1 + 2**-23)
