"""Policies that give each row a score and keep the best."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from snapkv_local.declared import option
from snapkv_local.errors import ConfigError
from snapkv_local.policies.policy import Policy
from snapkv_local.policies.rows import Ids, Positions, Scores, best, check_n_rows, protected
from snapkv_local.policies.view import LayerView, PromptView


@dataclass(frozen=True)
class Ranked(Policy):
    """Keeps protected rows, then those with the best scores.

    Attributes:
        n_sink: first positions that always stay (StreamingLLM, arXiv 2309.17453).
    """

    n_sink: int = option(0)

    @abstractmethod
    def score(self, layer: LayerView, prompt: PromptView) -> Scores:
        """Scores of the prefix: [n_head_kv, n_prefix], high ones stay."""

    def scores(self, layer: LayerView, prompt: PromptView) -> Scores:
        """As score(), which runs once for a prompt and layer."""
        if layer.k.shape[1] != prompt.n_prompt:
            raise ConfigError(
                f"layer {layer.index} of {layer.k.shape[1]} positions",
                f"is not of the prompt of {prompt.n_prompt} tokens",
                "take both from one prefill",
            )
        key = (self, layer.index)
        if key not in prompt.cache:
            prompt.cache[key] = np.ascontiguousarray(self.score(layer, prompt), dtype=np.float32)
        found: Scores = prompt.cache[key]
        return found

    def always(self, prompt: PromptView) -> Positions:
        """Sinks and protected spans."""
        return protected(prompt, self.n_sink)

    def select(self, layer: LayerView, prompt: PromptView, n_rows: int) -> Ids:
        """The protected rows, then the best scores; of equal ones the lower position."""
        always = self.always(prompt)
        check_n_rows(prompt, n_rows, len(always))
        if n_rows == 0:
            return np.empty((layer.k.shape[0], 0), dtype=np.int32)
        return best(self.scores(layer, prompt), n_rows, always)
