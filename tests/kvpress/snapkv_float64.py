"""SnapKV's selection in NumPy float64, from the paper's section 4 and nothing in this project.

It says whether a difference between kvpress and this project is kvpress's, and its switches give
the negative controls: selections wrong in a known way, which the comparison has to tell apart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int32]

# the name of a control and what it switches; "" is SnapKV itself
VARIANTS: dict[str, dict[str, object]] = {
    "": {},
    "no-mask": {"causal": False},  # window rows see the window's later tokens
    "wrong-group": {"group": "interleaved"},  # query head h votes for KV head h % n_head_kv
    "query-heads": {"group": "none"},  # one set for each query head, as with K and V repeated
    "no-pool": {"kernel_size": 1},
}


def window_votes(
    q: NDArray[np.float32], k: NDArray[np.float32], causal: bool = True
) -> NDArray[np.float64]:
    """Attention mass that each prefix position gets from the observation window.

    q [n_head, window, head_dim], k [n_head_kv, n_prompt, head_dim], both after RoPE
    -> [n_head, n_prompt - window]
    """
    n_head, window, head_dim = q.shape
    n_head_kv, n_prompt, _ = k.shape
    prefix = n_prompt - window
    # [n_head_kv, queries per KV head, window, head_dim]: consecutive query heads share a KV head
    grouped = q.astype(np.float64).reshape(n_head_kv, n_head // n_head_kv, window, head_dim)
    logits = np.einsum("hgrd,hjd->hgrj", grouped, k.astype(np.float64)) / np.sqrt(head_dim)
    if causal:
        later = np.arange(n_prompt)[None, :] > prefix + np.arange(window)[:, None]
        logits[..., later] = -np.inf
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights[..., :prefix].sum(axis=2).reshape(n_head, prefix)


def pool(votes: NDArray[np.float64], kernel_size: int) -> NDArray[np.float64]:
    """Average along the last axis, stride 1, zeros past both ends, always divided by the kernel."""
    half = kernel_size // 2
    padded = np.pad(votes, ((0, 0), (half, half)))
    return (
        np.lib.stride_tricks.sliding_window_view(padded, kernel_size, axis=-1).sum(axis=-1)
        / kernel_size
    )


def kept_positions(
    q: NDArray[np.float32],
    k: NDArray[np.float32],
    n_keep: int,
    kernel_size: int,
    causal: bool = True,
    group: str = "mean",
) -> Positions:
    """The n_keep prefix positions with the highest pooled votes, ascending.

    -> [n_head_kv, n_keep], or [n_head, n_keep] with group "none"
    """
    n_head, n_head_kv = q.shape[0], k.shape[0]
    scores = pool(window_votes(q, k, causal), kernel_size)
    if group == "mean":
        scores = scores.reshape(n_head_kv, n_head // n_head_kv, -1).mean(axis=1)
    elif group == "interleaved":
        scores = scores.reshape(n_head // n_head_kv, n_head_kv, -1).mean(axis=0)
    order = np.argsort(-scores, axis=-1, kind="stable")
    return np.sort(order[:, :n_keep], axis=-1).astype(np.int32)
