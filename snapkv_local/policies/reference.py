"""SnapKV in NumPy, in float64, as plain as can be: what the tests compare the native engine with.

Li et al., "SnapKV: LLM Knows What You are Looking for Before Generation", arXiv 2404.14469,
section 4 and listing 1, and what is ours: pooling without the greatest vote, and a position's own vote
beside the pooled one. For grouped-query attention, scores are pooled for each query head and then
averaged over the query heads that share a KV head, as in NVIDIA kvpress. Where later layers read the KV
of an earlier one, their query heads are among these.

Sizes: n prompt tokens, w window tokens, m = n - w prefix tokens, d head size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def attention(
    q: npt.NDArray[Any],
    k: npt.NDArray[Any],
    scale: float,
    softcap: float = 0.0,
    end: int | None = None,
) -> Array:
    """Attention of the window's queries over the whole prompt.

    Args:
        q: [n_head, w, d], the queries of the last w positions, as they enter attention (after
            RoPE).
        k: [n_head_kv, n, d], all keys; query head h reads KV head h // (n_head / n_head_kv).
        scale: factor on the dot products.
        softcap: c > 0 turns a logit x into c * tanh(x / c), as Gemma 2 does; 0 for none.
        end: position after the last query, if that is not n.

    Returns:
        [n_head, w, n], rows sum to 1. Row r stands at position end - w + r and sees no later
        position.
    """
    n_head, w, _ = q.shape
    n_head_kv, n, _ = k.shape
    end = n if end is None else end
    if not w <= end <= n or n_head % n_head_kv != 0:
        raise ValueError(f"q of shape {q.shape} does not fit k of shape {k.shape}")
    k_of_head = np.repeat(k.astype(np.float64), n_head // n_head_kv, axis=0)
    logits = np.einsum("hrd,hjd->hrj", q.astype(np.float64), k_of_head) * scale
    if softcap > 0:
        logits = softcap * np.tanh(logits / softcap)
    position = np.arange(end - w, end)[:, None]
    logits = np.where(np.arange(n)[None, :] <= position, logits, -np.inf)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), dtype=np.float64)


def pool(votes: Array, kernel_size: int, pooling: str = "avg") -> Array:
    """Cluster votes over positions with stride 1 and zeros beyond both ends.

    The average divides by the kernel at the borders too, as torch.avg_pool1d does by default.

    Args:
        votes: [..., m], not negative, so that a zero beyond the end never wins the maximum.
        kernel_size: odd number of positions; 1 pools nothing.
        pooling: "avg", "max", or "nosink": "avg" in which the first position has no vote.

    Returns:
        [..., m].
    """
    if kernel_size == 1:
        return votes.astype(np.float64)
    if pooling == "nosink":
        votes = votes.copy()
        votes[..., 0] = 0
    pad = [(0, 0)] * (votes.ndim - 1) + [(kernel_size // 2, kernel_size // 2)]
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(votes, pad), kernel_size, axis=-1)
    mean = windows.sum(axis=-1) / kernel_size
    pooled = {"avg": mean, "nosink": mean, "max": windows.max(axis=-1)}[pooling]
    return np.asarray(pooled, dtype=np.float64)


def scores(
    q: npt.NDArray[Any],
    k: npt.NDArray[Any],
    scale: float,
    *,
    kernel_size: int = 5,
    pooling: str = "avg",
    aggregation: str = "sum",
    self_weight: float = 0.0,
    softcap: float = 0.0,
) -> Array:
    """Scores of the prefix positions.

    Args:
        q, k, scale, softcap: as for attention().
        kernel_size, pooling: as for pool().
        aggregation: "sum" or "max" over the window's query rows.
        self_weight: weight of a position's own vote beside the pooled one.

    Returns:
        [n_head_kv, m].
    """
    w, (n_head_kv, n, _) = q.shape[1], k.shape
    # the softmax has run over prefix and window; only then is the window left out
    prefix = attention(q, k, scale, softcap)[:, :, : n - w]
    votes = prefix.max(axis=1) if aggregation == "max" else prefix.sum(axis=1)
    return group_mean(pool(votes, kernel_size, pooling) + self_weight * votes, n_head_kv)


def group_mean(votes: Array, n_head_kv: int) -> Array:
    """Mean over the query heads that share a KV head: [n_head, m] -> [n_head_kv, m]."""
    n_head, m = votes.shape
    grouped = votes.reshape(n_head_kv, n_head // n_head_kv, m)
    return np.asarray(grouped.mean(axis=1), dtype=np.float64)


def output_change(weights: Array, v: npt.NDArray[Any]) -> Array:
    """How far an attention output moves if a position is left out and the others scaled up to 1.

    Goel et al., "CAOTE", arXiv 2504.14051, section 3, without its closed form.

    Args:
        weights: [n_head, w, n], of attention().
        v: [n_head_kv, n, d_v].

    Returns:
        [n_head, w, n], Euclidean distances.
    """
    n_head, w, n = weights.shape
    v_of_head = np.repeat(v.astype(np.float64), n_head // v.shape[0], axis=0)
    moved = np.zeros((n_head, w, n))
    for h in range(n_head):
        output = weights[h] @ v_of_head[h]
        for j in range(n):
            rest = weights[h].copy()
            rest[:, j] = 0
            rest /= np.maximum(rest.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
            moved[h, :, j] = np.linalg.norm(output - rest @ v_of_head[h], axis=1)
    return moved


def select(score: npt.NDArray[Any], n_keep: int, n_sink: int = 0) -> npt.NDArray[np.int32]:
    """Prefix positions to keep: the sinks, then the best scores; of equal ones the lower position.

    Args:
        score: [n_head_kv, m].
        n_keep: positions to keep for each KV head, sinks included.

    Returns:
        [n_head_kv, n_keep], ascending.
    """
    ranked = score.astype(np.float64)
    ranked[:, :n_sink] = np.inf
    order = np.argsort(-ranked, axis=1, kind="stable")
    return np.sort(order[:, :n_keep], axis=1).astype(np.int32)


def coverage(
    q: npt.NDArray[Any],
    k: npt.NDArray[Any],
    scale: float,
    kept: npt.NDArray[np.int32],
    window_size: int | None = None,
) -> Array:
    """Share of the window's attention mass on the kept rows, the window's own included.

    Args:
        q, k, scale: as for attention().
        kept: [n_head_kv, n_keep], prefix positions.
        window_size: last rows, which stay; None for those of q.

    Returns:
        [n_head_kv], mean over the query rows and query heads that share a KV head.
    """
    n_head, w, _ = q.shape
    n_head_kv, n, _ = k.shape
    stays = np.zeros((n_head_kv, n), dtype=bool)
    np.put_along_axis(stays, kept.astype(np.int64), True, axis=1)
    stays[:, n - (window_size or w) :] = True
    mass = attention(q, k, scale).reshape(n_head_kv, n_head // n_head_kv, w, n)
    return np.asarray(
        (mass * stays[:, None, None, :]).sum(axis=-1).mean(axis=(1, 2)), dtype=np.float64
    )
