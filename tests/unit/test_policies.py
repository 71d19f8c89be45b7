"""How many rows each policy keeps."""

import dataclasses
import itertools
import re
from pathlib import Path

import pytest
from refused import refused

from snapkv_local import SnapKVConfig, policies
from snapkv_local.errors import ConfigError
from snapkv_local.policies.budget import native_ratio
from snapkv_local.policies.layered import Layered
from snapkv_local.policies.question import Question

# files of the folder that are no policies
HELPERS = {
    "reference",
    "__init__",
    "around",
    "budget",
    "layered",
    "options",
    "policy",
    "ranked",
    "rows",
    "scoring",
    "view",
    "voting",
}

SHAPES = [1, 31, 32, 33, 64, 65, 500, 131072]
SETTINGS = [
    {"budget": 64},
    {"budget": 64, "window_size": 8, "n_sink": 4},
    {"budget": 200000},
    {"keep_ratio": 0.1},
    {"keep_ratio": 0.001, "n_sink": 4},
    {"keep_ratio": 1.0},
]


@pytest.mark.parametrize(("settings", "n_prompt"), list(itertools.product(SETTINGS, SHAPES)))
def test_keeps_the_window_and_never_more_than_the_prompt(settings, n_prompt):
    config = SnapKVConfig(**settings)
    n_kept = config.n_kept(n_prompt)
    assert min(n_prompt, config.window_size + config.n_sink) <= n_kept <= n_prompt
    if config.budget is not None:
        assert n_kept <= config.budget or n_prompt <= config.window_size


@pytest.mark.parametrize("policy", policies.POLICIES.values(), ids=lambda policy: policy.name)
def test_is_registered_under_its_name_and_names_its_source(policy):
    assert policies.get(policy.name) is policy
    assert policy().name == policy.name
    assert re.match(r"arXiv \d{4}\.\d{5}(, section \d|$)|none: ", policy.source)


def test_each_policy_is_registered_and_in_a_file_of_its_name():
    folder = Path(policies.__file__).parent
    files = {path.stem for path in folder.glob("*.py")}
    named = {**policies.POLICIES, **policies.PREFILLS}
    modules = {name.replace("-", "_"): policy for name, policy in named.items()}
    assert files == HELPERS | set(modules)
    for module, policy in modules.items():
        assert policy.__module__ == f"snapkv_local.policies.{module}"


@pytest.mark.parametrize("name", policies.POLICIES)
def test_a_prefill_takes_all_that_keep_equally_many_rows_of_each_layer(name):
    if name == "snapkv-paper":
        with refused(ConfigError, f"policy='{name}'"):
            SnapKVConfig(policy=name)
        return
    if issubclass(policies.get(name), Layered):
        with refused(ConfigError, f"policy='{name}'"):
            SnapKVConfig(policy=name)
        return
    config = SnapKVConfig(policy=f" {name} ")
    assert config.policy == name
    assert config.chooser() == (None if name == "snapkv" else policies.parse(name))


def test_settings_keep_the_canonical_text():
    config = SnapKVConfig(policy="question:aggregation=max+kernel_size=21+pooling=avg")
    assert config.policy == "question:kernel_size=21+aggregation=max"
    assert config.chooser() == Question(kernel_size=21, aggregation="max")
    assert dataclasses.replace(config, budget=64).policy == config.policy


def test_which_policies_ask_where_the_question_is():
    asking = [
        text
        for text in ("question", "windows", "sentence:of=question")
        if policies.parse(text).asks()
    ]
    assert asking == ["question", "windows", "sentence:of=question"]
    for name in set(policies.POLICIES) - {"question", "windows"}:
        assert not policies.parse(name).asks()


@pytest.mark.parametrize(
    ("settings", "n_prompt", "n_kept"),
    [
        ({"budget": 64}, 63, 63),
        ({"budget": 64}, 64, 64),
        ({"budget": 64}, 65, 64),
        ({"budget": 64, "n_sink": 4}, 1000, 64),
        # floor(p * (n - w)) of the prefix, and the window
        ({"keep_ratio": 0.1}, 1032, 100 + 32),
        ({"keep_ratio": 0.1}, 1031, 99 + 32),
        ({"keep_ratio": 0.7}, 532, 350 + 32),
        ({"keep_ratio": 0.001}, 132, 0 + 32),
        ({"keep_ratio": 0.001, "n_sink": 4}, 132, 4 + 32),
        ({"keep_ratio": 1.0}, 1000, 1000),
        # a prompt within the window has no prefix to evict from
        ({"keep_ratio": 0.1}, 32, 32),
        ({"keep_ratio": 0.1}, 7, 7),
        ({"keep_ratio": 0.1, "n_sink": 50}, 40, 40),
    ],
)
def test_snapkv_keeps(settings, n_prompt, n_kept):
    assert SnapKVConfig(**settings).n_kept(n_prompt) == n_kept


@pytest.mark.parametrize("percent", range(1, 101))
def test_a_ratio_of_whole_percents_keeps_the_whole_number(percent):
    # percent / 100 is mostly below or above itself in binary: 0.29 * 100 = 28.999999999999996
    assert SnapKVConfig(keep_ratio=percent / 100).n_kept(100 + 32) == percent + 32
    assert SnapKVConfig(keep_ratio=percent / 100).n_kept(50000 + 32) == 500 * percent + 32


def test_the_native_ratio_is_within_a_float32_step_above():
    for keep_ratio in (0.1, 0.29, 0.5, 0.7, 1.0):
        assert keep_ratio <= native_ratio(keep_ratio) <= keep_ratio * (1 + 2**-23)
