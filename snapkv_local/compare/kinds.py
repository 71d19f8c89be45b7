"""What a file is that is not a record of speed and memory."""

from __future__ import annotations

from typing import Any

from snapkv_local.errors import ConfigError


class OtherRecordError(ConfigError):
    """A file holds figures of another kind, which another command reads."""


def other_kind(found: Any) -> str | None:
    """What else a file is that commands and scripts of this project write; None if it is not known."""
    if not isinstance(found, dict):
        return None
    if found.get("kind") == "eval":
        return "a record of `snapkv-local eval`"
    if "held_out_scores" in found:
        return "a report of `snapkv-local tune`"
    if "ways" in found or "comparisons" in found:
        return "a plan of `snapkv-local plan`"
    if "device" not in found and ("settings" in found or "n_cases" in found):
        return "a record of a script"  # of scripts/ and tests/kvpress
    return None
