"""A way to hold a prompt: a policy and a budget, or all rows, in one type of cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from snapkv_local.plan.kinds import window as sliding_window
from snapkv_local.plan.layers import KvType, cached_layers, row_bytes
from snapkv_local.plan.model import PlannedModel

FULL = "full"


@dataclass(frozen=True)
class Cell:
    """One row of the table.

    Attributes:
        policy: its text, or "full".
        budget: rows for each KV head, the window included; 0 for full.
        kv_type: of the cache.
    """

    policy: str
    budget: int
    kv_type: KvType

    @property
    def name(self) -> str:
        """In records."""
        budget = f"/{self.budget}" if self.budget else ""
        return f"{self.policy}{budget}/{self.kv_type}"

    @property
    def is_full(self) -> bool:
        """All rows stay."""
        return self.policy == FULL

    def against(self, policy: str) -> Cell | None:
        """The cell of another policy that it is compared with; None if there is none."""
        if self.is_full or self.policy == policy:
            return None
        return Cell(policy, self.budget, self.kv_type)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"policy": self.policy, "budget": self.budget or None, "kv_type": self.kv_type}


REFERENCE = Cell(FULL, 0, "f16")


def cells_of(policies: Sequence[str], budgets: Sequence[int], kv_type: KvType) -> list[Cell]:
    """All cells of one type of cache, the full one first."""
    chosen = [Cell(policy, budget, kv_type) for policy in policies for budget in budgets]
    return [Cell(FULL, 0, kv_type), *chosen]


def kv_bytes(
    model: PlannedModel, kv_type: KvType, n_prompt: int, rows: Sequence[int] | None
) -> int:
    """Bytes of K and V that stay of a prompt, all layers.

    Args:
        rows: kept in each cached layer, the window included; None for all.
    """
    cached = cached_layers(model)
    n_rows = dict(zip(cached, rows or [n_prompt] * len(cached), strict=True))
    n_window = min(n_prompt, sliding_window(model.shape))
    return sum(
        row_bytes(model, il, kv_type) * n_rows.get(il, n_window if layer.is_swa else 0)
        for il, layer in enumerate(model.layers)
    )
