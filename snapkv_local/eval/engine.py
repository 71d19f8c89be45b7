"""What an evaluation needs of a model and of a policy. EvalLlama is an Engine, policies.Policy a Chooser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from snapkv_local.policies.view import LayerView, PromptView

Ids = Sequence[npt.NDArray[np.int32]]


class Engine(Protocol):
    """A model with cells for the whole prompt and a vault."""

    def prefill(self, tokens: Sequence[int], /) -> Any:
        """Evaluate a prompt; all its rows stay."""

    def prefill_with(
        self, tokens: Sequence[int], budget: int, settings: Mapping[str, Any], view: PromptView, /
    ) -> Any:
        """Evaluate a prompt with these settings of SnapKVConfig, and keep the budget's rows."""

    def rewind(self) -> None:
        """Back to the end of the prompt."""

    def layer_views(self) -> list[LayerView]:
        """Queries, keys and values of each cached layer."""

    def repeated_views(self, begin: int, /) -> list[LayerView]:
        """As layer_views(), with the prompt from there on evaluated once more behind it."""

    def select_rows(self, ids: Ids | None, /) -> None:
        """Only these rows of the prompt and its window, or all; what followed it is removed."""

    def logits_for(self, tokens: Sequence[int], last: int, /) -> npt.NDArray[np.float32]:
        """Logits after each of the last tokens, [last, n_vocab], from the end of the prompt."""

    def close(self) -> None:
        """Free the model."""


class Chooser(Protocol):
    """A policy."""

    @property
    def spec(self) -> str:
        """Its canonical text."""

    def repeats(self) -> bool:
        """Does it need repeated_views()?"""

    def n_observed(self, prompt: PromptView, /) -> int:
        """Query rows at the prompt's end that it needs."""

    def always(self, prompt: PromptView, /) -> npt.NDArray[np.int64]:
        """Prefix positions that stay whatever else does."""

    def rows(self, n_rows: int, layers: Sequence[LayerView], prompt: PromptView, /) -> list[int]:
        """Prefix rows of each layer; at most n_rows in the mean."""

    def select(self, layer: LayerView, prompt: PromptView, n_rows: int, /) -> npt.NDArray[np.int32]:
        """[n_head_kv, n_rows], ascending, below n_prompt - window."""
