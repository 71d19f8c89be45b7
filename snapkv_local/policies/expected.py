"""Expected Attention: the rows that queries to come will attend to, whatever they ask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from snapkv_local.declared import option
from snapkv_local.policies.ranked import Ranked
from snapkv_local.policies.rows import Scores, n_prefix
from snapkv_local.policies.scoring import Floats, group_mean, queries
from snapkv_local.policies.view import LayerView, PromptView


@dataclass(frozen=True)
class Expected(Ranked):
    """Attention of future queries in closed form, times what a row adds to the output.

    Devoto et al., "Expected Attention: KV Cache Compression by Estimating Attention from Future
    Queries Distribution", arXiv 2510.00636, section 3. If queries are Gaussian with mean m and
    covariance S, the expectation of exp(q k / sqrt(d)) is exp(m k / sqrt(d) + k S k / 2d); the share
    of a row among all, times the length of its value, is its score. No question is looked at.

    The paper takes m and S before RoPE, and rotates them by the mean of the rotations of the next 512
    positions. Here they are those of the last rows' queries as they are, after RoPE: the rotations are
    those of the positions before the document's end, which lie as close to it.

    Attributes:
        observation: how many of the last rows' queries stand for those to come.
        epsilon: added to the share before it is multiplied by the value's length; 0 in the authors' code.
        n_sink: first positions that always stay, and count in no share; 4 in the authors' code.
    """

    name: ClassVar[str] = "expected"
    source: ClassVar[str] = "arXiv 2510.00636, section 3"

    n_sink: int = option(4)
    observation: int = option(512, least=2)
    epsilon: float = option(0.0, most=1)

    def n_observed(self, prompt: PromptView) -> int:
        """As many as there are, up to `observation`."""
        return min(self.observation, prompt.n_prompt)

    def score(self, layer: LayerView, prompt: PromptView) -> Scores:
        """Expected share times the value's length, mean over the query heads of a KV head."""
        n, n_head_kv = n_prefix(prompt), layer.k.shape[0]
        first = min(self.n_sink, n)
        group = len(layer.q) // n_head_kv
        share = np.zeros((len(layer.q), n), dtype=np.float32)
        begin = prompt.n_prompt - self.n_observed(prompt)
        for head, rows in enumerate(queries(layer, begin, prompt.n_prompt)):
            logits = expected_logits(rows, layer.k[head // group, first:n], layer.scale)
            if layer.softcap > 0:
                logits = layer.softcap * np.tanh(logits / layer.softcap)
            weights = np.exp(logits - logits.max(initial=-np.inf))
            share[head, first:] = weights / weights.sum()
        values = np.linalg.norm(layer.v[:, :n], axis=2)
        found: Scores = (group_mean(share, n_head_kv) + np.float32(self.epsilon)) * values
        return found


def expected_logits(rows: Floats, keys: Floats, scale: float) -> Floats:
    """Logarithm of the expectation of exp(scale * q k) over Gaussian queries, for each key.

    Args:
        rows: [r, d], queries whose mean and covariance are taken.
        keys: [n, d].

    Returns:
        [n].
    """
    mean = rows.mean(axis=0)
    apart = rows - mean
    spread = apart.T @ apart / np.float32(len(rows))
    logits: Floats = scale * (keys @ mean) + scale**2 / 2 * ((keys @ spread) * keys).sum(axis=1)
    return logits
