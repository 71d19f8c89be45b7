"""What every policy answers."""

from __future__ import annotations

import dataclasses
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

# settings of SnapKVConfig that say how the engine's own policy chooses
OF_THE_ENGINE = (
    "voters",
    "kernel",
    "pool",
    "reduce",
    "own",
    "sinks",
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

    def asks(self) -> bool:
        """Does it need PromptView.question?"""
        return False

    def seeks(self) -> bool:
        """Does it use PromptView.question where there is one?"""
        return self.asks()

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

    def check(self, config: SnapKVConfig) -> None:
        """Refuse settings with which a prefill cannot use the policy.

        Raises:
            ConfigError: the budget leaves no row to choose, or a setting is of the engine's own
                policy.
        """
        budget.check(config)
        for name, value in vars(config).items():
            if name in OF_THE_ENGINE and value != getattr(type(config), name):
                raise ConfigError(
                    f"{name}={value!r}",
                    f"is a setting of snapkv, and policy={self.spec!r} chooses the rows",
                    f"leave it out; {self.name} has {_names(self)}",
                )
        if config.budget is not None:
            # the shortest prompt of which rows are evicted
            shortest = PromptView(n_prompt=config.budget + 1, window=config.window)
            n_always = len(self.always(shortest))
            if n_always >= config.budget - config.window:
                raise ConfigError(
                    f"budget={config.budget}",
                    f"leaves no row to select: window={config.window} and the {n_always} rows that "
                    f"{self.spec} always keeps take all",
                    "raise the budget or lower the window",
                )


def _names(policy: Policy) -> str:
    """Its options, in words."""
    names = sorted(field.name for field in dataclasses.fields(policy))
    return f"options of its own: {', '.join(names)}" if names else "no options"
