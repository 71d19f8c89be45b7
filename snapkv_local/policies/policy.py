"""What every policy answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from snapkv_local.errors import ConfigError
from snapkv_local.policies import budget, options
from snapkv_local.policies.rows import Ids, Positions, protected
from snapkv_local.policies.view import LayerView, PromptView

if TYPE_CHECKING:
    from snapkv_local.config import SnapKVConfig


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
        options.check(self)

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

    @classmethod
    def check(cls, config: SnapKVConfig) -> None:
        """Raise ConfigError if the engine cannot run the policy with these settings."""
        if not cls.native:
            raise ConfigError(
                f"policy={cls.name!r}", "is not in the native engine", "choose snapkv"
            )
        budget.check(config)

    @classmethod
    def n_kept(cls, config: SnapKVConfig, n_prompt: int) -> int:
        """Rows kept for each KV head, the window included; n_prompt if nothing is evicted."""
        return budget.n_kept(config, n_prompt)
