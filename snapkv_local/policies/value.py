"""SnapKV with votes for what a row adds to the output, not only for how much it is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from snapkv_local.policies.rows import n_prefix
from snapkv_local.policies.scoring import Block, Floats, add_votes, attention, dot
from snapkv_local.policies.snapkv_paper import SnapKVPaper
from snapkv_local.policies.view import LayerView, PromptView


@dataclass(frozen=True)
class Value(SnapKVPaper):
    """Votes weighted by the values.

    Attention A[r, j] of query row r becomes, before the rows vote:

    - norm: A[r, j] * |v_j|_1, as in VATP (Guo et al., arXiv 2406.12335, section 3);
    - caote: A[r, j] / (1 - A[r, j]) * |o_r - v_j|_2 with the attention's output o_r: the distance that
      o_r moves if row j is left out and the others' attention scaled up to 1 (Goel et al., arXiv
      2504.14051, section 3). The paper has one row's attention, or scores in its place; here each
      query row has its own, exactly.

    CriticalKV (arXiv 2502.03805) is not among them: it needs the output projection's weights.

    Attributes:
        kind: "norm" or "caote".
    """

    name: ClassVar[str] = "value"
    source: ClassVar[str] = "arXiv 2406.12335, section 3; arXiv 2504.14051, section 3"
    native: ClassVar[bool] = False

    kind: Literal["norm", "caote"] = "norm"

    def votes(self, layer: LayerView, prompt: PromptView) -> Floats:
        """Weighted votes."""
        group = layer.q.shape[0] // layer.k.shape[0]
        if self.kind == "norm":
            found = super().votes(layer, prompt)
            norms = np.abs(layer.v[:, : found.shape[1]]).sum(axis=2)
            weighted: Floats = found * np.repeat(norms, group, axis=0)
            return weighted
        n = n_prefix(prompt)
        moved = np.zeros((layer.k.shape[0], group, n), dtype=np.float32)
        for block in attention(layer, *self.voters(prompt)):
            e = output_change(block, layer.v[block.head_kv])[:, :, :n]
            add_votes(moved[block.head_kv], e, np.ones_like(block.norm), self.aggregation)
        moved[:, :, self.voters(prompt)[0] :] = 0
        return moved.reshape(len(layer.q), n)


def output_change(block: Block, v: Floats) -> Floats:
    """How far each query row's output moves without each of the rows.

    Args:
        block: overwritten.
        v: [n, head_dim_v], of the block's KV head.

    Returns:
        [g, rows, n_seen].
    """
    group, size, n_seen = block.e.shape
    a = block.e.reshape(group * size, n_seen)
    a *= block.norm.reshape(-1, 1)
    v = v[:n_seen]
    # the row that has the most may have nearly all, so that 1 - a would be rounding: it is set apart
    rows, top = np.arange(len(a)), a.argmax(axis=1)
    most = a[rows, top]
    a[rows, top] = 0
    rest = a.sum(axis=1)
    others = a @ v
    output = others + most[:, None] * v[top]
    # |o - v|^2 without an array of all differences
    distance: Floats = np.empty_like(a)
    dot(output, v, distance)
    distance *= -2
    distance += np.square(v).sum(axis=1)
    distance += np.square(output).sum(axis=1)[:, None]
    np.sqrt(np.maximum(distance, 0, out=distance), out=distance)
    distance *= a
    distance /= 1 - a
    mean = others / np.maximum(rest, np.finfo(np.float32).tiny)[:, None]
    distance[rows, top] = most * np.linalg.norm(v[top] - mean, axis=1)
    return distance.reshape(group, size, n_seen)
