"""What a policy sees of a prompt and of one layer after its prefill."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Again:
    """Rows of one layer for the prompt's tokens, evaluated once more behind the prompt.

    Attributes:
        q: [n_head, n_again, head_dim], after RoPE.
        k: [n_head_kv, n_again, head_dim].
    """

    q: npt.NDArray[np.float32]
    k: npt.NDArray[np.float32]


@dataclass(frozen=True)
class LayerView:
    """One cached layer after a prefill.

    Attributes:
        index: among the cached layers.
        n_layer: cached layers.
        q: [n_head, n_observed, head_dim], of the prompt's last n_observed positions, after RoPE.
        k: [n_head_kv, n_prompt, head_dim].
        v: [n_head_kv, n_prompt, head_dim_v].
        scale: factor on the dot products.
        softcap: c > 0 turns a logit x into c * tanh(x / c); 0 for none.
        again: for policies that repeat the prompt.
    """

    index: int
    n_layer: int
    q: npt.NDArray[np.float32]
    k: npt.NDArray[np.float32]
    v: npt.NDArray[np.float32]
    scale: float
    softcap: float
    again: Again | None = None


@dataclass(frozen=True)
class PromptView:
    """A prompt, by positions.

    Attributes:
        n_prompt: tokens.
        window_size: rows at the end that always stay.
        protected: [begin, end) positions that always stay: the system prompt, marked spans.
        question: [begin, end) of the last user turn's own words, without the template's.
        sentences: first position of each sentence, ascending.
        cache: for what several budgets of one prompt share.
    """

    n_prompt: int
    window_size: int
    protected: tuple[tuple[int, int], ...] = ()
    question: tuple[int, int] | None = None
    sentences: tuple[int, ...] | None = None
    cache: dict[Any, Any] = field(default_factory=dict, compare=False)
