"""Whole sentences: rows stay together with what they say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from snapkv_local.declared import option
from snapkv_local.policies.around import Around
from snapkv_local.policies.ranked import Ranked
from snapkv_local.policies.rows import Positions, Scores, n_prefix
from snapkv_local.policies.snapkv_paper import SnapKVPaper
from snapkv_local.policies.view import LayerView, PromptView


@dataclass(frozen=True)
class Sentence(Around):
    """The best sentences, and of the first one that does not fit its best rows.

    After ChunkKV (Liu et al., arXiv 2502.00299, section 3), whose chunks have a fixed size.

    Attributes:
        block: tokens of a chunk, where the prompt's sentences are not known.
        by: a chunk's score is the "mean" or the "max" of its rows' scores.
        heads: "each" KV head chooses its own chunks, or "all" of a layer choose together, by their
            mean.
        of: the policy that scores the rows.
    """

    name: ClassVar[str] = "sentence"
    source: ClassVar[str] = "arXiv 2502.00299, section 3"

    block: int = option(16, least=1)
    by: Literal["mean", "max"] = "mean"
    heads: Literal["each", "all"] = "each"
    of: Ranked = field(default=SnapKVPaper(kernel_size=1))

    def starts(self, prompt: PromptView) -> Positions:
        """First positions of the chunks of the prefix, ascending, from 0."""
        n = n_prefix(prompt)
        if prompt.sentences is None:
            return np.arange(0, n, self.block)
        first = np.array([0, *prompt.sentences], dtype=np.int64)
        return np.unique(first[(first >= 0) & (first < n)])

    def score(self, layer: LayerView, prompt: PromptView) -> Scores:
        """Minus the place of each row: by chunk, and within it by score."""
        rows = self.of.scores(layer, prompt)
        if self.heads == "all":
            rows = np.broadcast_to(rows.mean(axis=0), rows.shape)
        starts, n = self.starts(prompt), n_prefix(prompt)
        sizes = np.diff(np.append(starts, n))
        chunk_of = np.repeat(np.arange(len(starts)), sizes)
        place = np.empty(rows.shape, dtype=np.float32)
        for head, score in enumerate(rows):
            if self.by == "max":
                chunks = np.maximum.reduceat(score, starts)
            else:
                chunks = np.add.reduceat(score, starts) / sizes
            order = np.lexsort((-score, chunk_of, -chunks[chunk_of]))
            # float32 is exact up to 2**24
            place[head, order] = -np.arange(n, dtype=np.float32)
        return place
