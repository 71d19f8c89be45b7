"""Eviction policies by name. One file each: how many rows it keeps, which settings it accepts.

The scores that it ranks by are computed in the native engine (csrc/); reference.py has them in
NumPy.
"""

from __future__ import annotations

from snapkv_local.errors import ConfigError
from snapkv_local.policies import snapkv
from snapkv_local.policies.policy import Policy

__all__ = ["POLICIES", "Policy", "get"]

POLICIES: dict[str, Policy] = {policy.name: policy for policy in (snapkv.POLICY,)}


def get(name: str) -> Policy:
    """The policy of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in POLICIES:
        raise ConfigError(
            f"policy={name!r}", "no such policy", f"choose one of {', '.join(sorted(POLICIES))}"
        )
    return POLICIES[name]
