"""SnapKV with the options that the engine has by default."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from snapkv_local.declared import option
from snapkv_local.policies.scoring import INSTEAD, MOST_SELF_WEIGHT, Aggregation, Pooling
from snapkv_local.policies.snapkv_paper import SnapKVPaper


@dataclass(frozen=True)
class SnapKV(SnapKVPaper):
    """SnapKVPaper with options that are ours; docs/budget.md says what each gains.

    The question's words vote, the largest vote of any of them counts, and it is pooled widely, but
    for that for the prompt's first token, which counts for itself alone.
    """

    name: ClassVar[str] = "snapkv"

    kernel_size: int = option(21, least=1, odd=True)
    self_weight: float = option(0.25, most=MOST_SELF_WEIGHT)
    pooling: Pooling = option("nosink", instead=INSTEAD)
    aggregation: Aggregation = "max"
    observation: int | Literal["question", "window"] = option("question", least=1)

    def of_the_engine(self) -> dict[str, Any]:
        """These options as settings of SnapKVConfig, whose window is the prompt's."""
        own = {field.name: getattr(self, field.name) for field in fields(SnapKV)}
        return {name: value for name, value in own.items() if value != "window"}
