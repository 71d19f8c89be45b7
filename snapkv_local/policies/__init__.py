"""Eviction policies by name: which prefix rows of each layer stay.

Each is NumPy code that chooses rows from queries, keys and values of a layer (view.py). The native
engine (csrc/) has snapkv and snapkv-paper; reference.py has it in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from snapkv_local.errors import ConfigError
from snapkv_local.policies import options
from snapkv_local.policies.adaptive import Adaptive
from snapkv_local.policies.exact import Exact
from snapkv_local.policies.expected import Expected
from snapkv_local.policies.h2o import H2O
from snapkv_local.policies.joint import Joint
from snapkv_local.policies.level import Level
from snapkv_local.policies.policy import Policy
from snapkv_local.policies.pyramid import Pyramid
from snapkv_local.policies.question import Question
from snapkv_local.policies.random import Random
from snapkv_local.policies.recall import Recall
from snapkv_local.policies.replay import Replay
from snapkv_local.policies.selective import Selective
from snapkv_local.policies.sentence import Sentence
from snapkv_local.policies.snapkv import SnapKV
from snapkv_local.policies.snapkv_paper import SnapKVPaper
from snapkv_local.policies.streaming import Streaming
from snapkv_local.policies.value import Value
from snapkv_local.policies.view import LayerView, PromptView
from snapkv_local.policies.windows import Windows

__all__ = ["POLICIES", "PREFILLS", "LayerView", "Policy", "PromptView", "get", "parse"]

POLICIES: dict[str, type[Policy]] = {
    policy.name: policy
    for policy in (
        SnapKV,
        SnapKVPaper,
        Streaming,
        Random,
        H2O,
        Value,
        Question,
        Windows,
        Pyramid,
        Adaptive,
        Sentence,
        Joint,
        Expected,
        Replay,
        Level,
    )
}


def get(name: str) -> type[Policy]:
    """The policy of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in POLICIES:
        raise ConfigError(
            f"policy={name!r}", "is not a policy", f"choose one of {', '.join(POLICIES)}"
        )
    return POLICIES[name]


# what says how a prompt, or its answer, is evaluated, too, and so chooses no rows of one that has been
PREFILLS: dict[str, type[Policy]] = {policy.name: policy for policy in (Exact, Selective, Recall)}


def parse(text: str, others: Mapping[str, type[Policy]] | None = None) -> Policy:
    """The policy that a text names, such as `snapkv:kernel_size=13+pooling=max`; options.py has the rules.

    Args:
        others: that it may name beside POLICIES.

    Raises:
        ConfigError: no such policy, option or value.
    """
    return cast(Policy, options.parse(text, {**POLICIES, **(others or {})}))
