"""What every policy answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snapkv_local.config import SnapKVConfig


@dataclass(frozen=True)
class Policy:
    """One way to choose the rows that stay.

    Attributes:
        name: as in SnapKVConfig(policy=...).
        source: paper and section.
        check: raises ConfigError if the policy cannot work with these settings.
        n_kept: (config, n_prompt) -> rows kept for each KV head, the window included; n_prompt if
            nothing is evicted.
    """

    name: str
    source: str
    check: Callable[[SnapKVConfig], None]
    n_kept: Callable[[SnapKVConfig, int], int]
