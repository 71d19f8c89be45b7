"""SnapKV after a selective prefill, as evaluations name it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from snapkv_local.declared import option
from snapkv_local.policies.snapkv import SnapKV


@dataclass(frozen=True)
class Selective(SnapKV):
    """SnapKV whose later layers have computed only rows that they were seen to look at. Not exact.

    Only the engine can do it: what later layers would have made of the other rows is nowhere to be
    found. So it is no policy that chooses from rows that are there, and SnapKVConfig has it as
    prefill="selective".

    Attributes:
        share: of the prompt's rows, those that go on.
        least: rows that go on at least.
        depth: share of the layers that all rows go through at least.
        settled: share of the votes of later layers that the rows of the look before must get.
    """

    name: ClassVar[str] = "selective"

    share: float = option(0.2, most=1, above=True)
    least: int = option(1024, least=1)
    depth: float = option(0.375, most=1)
    settled: float = option(0.3, most=1)

    def settings(self) -> dict[str, Any]:
        """Of SnapKVConfig."""
        return {
            **self.of_the_engine(),
            "prefill": "selective",
            **{f"select_{name}": getattr(self, name) for name in ("share", "depth", "settled")},
            "select_min": self.least,
        }
