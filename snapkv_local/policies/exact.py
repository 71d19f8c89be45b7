"""SnapKV after an exact prefill of its own, as evaluations name it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from snapkv_local.policies.snapkv import SnapKV


@dataclass(frozen=True)
class Exact(SnapKV):
    """What snapkv keeps, chosen by the engine in a prefill without a vault.

    It keeps the rows that snapkv keeps. It is there to be timed: what a selective prefill takes is to
    be compared with a prefill of the same budget, and not with that of the full cache.
    """

    name: ClassVar[str] = "exact"

    def settings(self) -> dict[str, Any]:
        """Of SnapKVConfig."""
        return self.of_the_engine()
