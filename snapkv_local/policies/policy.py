"""What every policy answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from snapkv_local import declared
from snapkv_local.policies import options
from snapkv_local.policies.rows import Ids, Positions, protected
from snapkv_local.policies.view import LayerView, PromptView

# settings of SnapKVConfig that say how the engine's own policy chooses
OF_THE_ENGINE = (
    "observation",
    "kernel_size",
    "pooling",
    "aggregation",
    "self_weight",
    "n_sink",
    "min_coverage",
    "max_budget",
)


@dataclass(frozen=True)
class Policy(ABC):
    """One way to choose the rows that stay. Its options are its fields.

    Attributes:
        name: as in SnapKVConfig(policy=...) and in spec.
        source: paper and section.
        native: the engine in csrc/ has it.

    Raises:
        ConfigError: an option is out of its range.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    native: ClassVar[bool] = False

    def __post_init__(self) -> None:
        declared.check(self, f"policy {self.name}, ")

    @property
    def spec(self) -> str:
        """The text that policies.parse() makes this policy from."""
        return options.spec(self)

    @abstractmethod
    def n_observed(self, prompt: PromptView) -> int:
        """Query rows at the prompt's end that it needs.

        Raises:
            ConfigError: it cannot work on such a prompt.
        """

    def asks(self) -> bool:
        """Does it need PromptView.question?"""
        return False

    def seeks(self) -> bool:
        """Does it use PromptView.question where there is one?"""
        return self.asks()

    def repeats(self) -> bool:
        """Does it need LayerView.again?"""
        return False

    def in_prefill(self) -> Policy:
        """What of it a prefill can use: all, but for what shares rows out over layers."""
        return self

    def always(self, prompt: PromptView) -> Positions:
        """Prefix positions that stay whatever the scores: [n], ascending."""
        return protected(prompt)

    @abstractmethod
    def select(self, layer: LayerView, prompt: PromptView, n_rows: int) -> Ids:
        """Prefix rows of a layer that stay.

        Args:
            n_rows: for each KV head, protected ones included, the window's not.

        Returns:
            [n_head_kv, n_rows], ascending, distinct, below n_prompt - window.

        Raises:
            ConfigError: n_rows does not hold what is protected, or the layer has too few queries.
        """

    def rows(self, n_rows: int, layers: Sequence[LayerView], prompt: PromptView) -> list[int]:
        """Prefix rows of each layer, at most n_rows in the mean."""
        return [n_rows] * len(layers)
