"""What scores are made of: attention of some query rows, votes, pooling, the mean over a group.

Sizes: n prompt tokens, m prefix tokens, d head size, g query heads of a KV head. All in float32, with
matrix products in BLAS.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from snapkv_local.errors import ConfigError
from snapkv_local.policies.rows import Scores
from snapkv_local.policies.view import LayerView

Floats = npt.NDArray[np.float32]
Pooling = Literal["avg", "max", "nosink"]
Aggregation = Literal["sum", "max"]
# words that pooling had, and what to give instead
INSTEAD = {"trim": "nosink"}

# of a position's own vote beside the pooled one: beyond it pooling says nothing
MOST_SELF_WEIGHT = 1000

# of the attention matrix, elements: 4 MiB
_BLOCK = 2**20
# multiplications: OpenBLAS starts threads above the one; below the other, 10 ms on a core, its threads'
# waiting for one another can take longer than what they save
_PIECE = 2**18
_SMALL = 2**28


@dataclass(frozen=True)
class Block:
    """Some query rows of one KV head's group, over the keys that the last of them sees.

    Attributes:
        head_kv: KV head.
        begin: position of the first row.
        e: [g, rows, n_seen], the softmax before its division. Overwritten by the next block.
        norm: [g, rows], what e is to be multiplied by.
    """

    head_kv: int
    begin: int
    e: Floats
    norm: Floats


def attention(layer: LayerView, begin: int, end: int) -> Iterator[Block]:
    """Attention of the query rows at [begin, end) over all positions that each of them sees.

    Raises:
        ConfigError: the layer does not have these rows.
    """
    n_head, _, d = layer.q.shape
    n_head_kv = layer.k.shape[0]
    group = n_head // n_head_kv
    q = queries(layer, begin, end) * np.float32(layer.scale)
    step = min(end - begin, max(1, _BLOCK // (group * end)))
    space = np.empty(group * step * end, dtype=np.float32)
    later = np.triu(np.ones((step, step), dtype=bool), k=1)
    for head_kv in range(n_head_kv):
        heads = q[head_kv * group : (head_kv + 1) * group]
        for at in range(begin, end, step):
            stop = min(at + step, end)
            size = stop - at
            rows = heads[:, at - begin : stop - begin].reshape(group * size, d)
            flat = space[: group * size * stop].reshape(group * size, stop)
            dot(rows, layer.k[head_kv, :stop], flat)
            if layer.softcap > 0:
                flat /= np.float32(layer.softcap)
                np.tanh(flat, out=flat)
                flat *= np.float32(layer.softcap)
            e = flat.reshape(group, size, stop)
            e[:, :, at:][:, later[:size, :size]] = -np.inf
            flat -= flat.max(axis=1, keepdims=True)
            np.exp(flat, out=flat)
            yield Block(head_kv, at, e, 1 / e.sum(axis=2))


def queries(layer: LayerView, begin: int, end: int) -> Floats:
    """The query rows at [begin, end): [n_head, end - begin, d].

    Raises:
        ConfigError: the layer does not have these rows.
    """
    n_observed, n = layer.q.shape[1], layer.k.shape[1]
    first = n - n_observed
    if not first <= begin < end <= n:
        raise ConfigError(
            f"queries at [{begin}, {end})",
            f"the layer has those of the last {n_observed} of {n} positions",
            f"observe the last {n - max(0, begin)} or more: Llama(keep_queries=...)",
        )
    return layer.q[:, begin - first : end - first]


def dot(rows: Floats, keys: Floats, out: Floats) -> None:
    """Dot products of rows and keys; small ones on the calling thread alone.

    BLAS threads wait for one another in loops. Beside busy cores, and llama.cpp's own threads are such,
    that takes far longer than the product: with 48 rows and 16,384 keys of 64, on two such cores, one call
    took 88 ms (16 ms of CPU time), and pieces took 12 ms (4 ms); medians of 25. NumPy has no argument for
    the number of threads, and a limit for the process (threadpoolctl) would slow its other products.

    Args:
        rows: [r, d].
        keys: [n, d], contiguous.
        out: [r, n], contiguous, written.
    """
    (r, d), n = rows.shape, len(keys)
    if r * n * d > _SMALL:
        np.matmul(rows, keys.T, out=out)
        return
    height = max(1, min(r, _PIECE // 32 // d))
    width = max(1, _PIECE // (height * d))
    for top in range(0, r, height):
        some, target = rows[top : top + height], out[top : top + height]
        for left in range(0, n, width):
            keys_of_piece = keys[left : left + width]
            np.matmul(some, keys_of_piece.T, out=target[:, left : left + width])


def votes(
    layer: LayerView, begin: int, end: int, n_prefix: int, aggregation: Aggregation
) -> Floats:
    """What the query rows at [begin, end) give to each prefix position, together.

    Returns:
        [n_head, m].
    """
    n_head_kv = layer.k.shape[0]
    group = layer.q.shape[0] // n_head_kv
    found = np.zeros((n_head_kv, group, n_prefix), dtype=np.float32)
    for block in attention(layer, begin, end):
        add_votes(found[block.head_kv], block.e[:, :, :n_prefix], block.norm, aggregation)
    return found.reshape(n_head_kv * group, n_prefix)


def add_votes(found: Floats, e: Floats, norm: Floats, aggregation: Aggregation) -> None:
    """Add a block's votes to those of a KV head.

    Args:
        found: [g, m], changed.
        e: [g, rows, up to m]; overwritten with aggregation="max".
        norm: [g, rows], factors of e.
    """
    seen = found[:, : e.shape[2]]
    if aggregation == "sum":
        seen += np.matmul(norm[:, None, :], e)[:, 0]
    else:
        e *= norm[:, :, None]
        np.maximum(seen, e.max(axis=1), out=seen)


def pool(votes: Floats, kernel_size: int, pooling: Pooling) -> Floats:
    """Cluster votes over positions, as reference.pool().

    By shifted additions: a running sum would round equal votes to different scores.

    Args:
        votes: [..., m], not negative.
        kernel_size: odd number of positions; 1 pools nothing.

    Returns:
        [..., m].
    """
    m, half = votes.shape[-1], kernel_size // 2
    if kernel_size == 1:
        return votes
    padded = np.zeros((*votes.shape[:-1], m + 2 * half), dtype=np.float32)
    padded[..., half : half + m] = votes
    if pooling == "nosink":
        padded[..., half] = 0
    pooled = padded[..., :m].copy()
    combine = np.maximum if pooling == "max" else np.add
    for shift in range(1, kernel_size):
        combine(pooled, padded[..., shift : shift + m], out=pooled)
    if pooling != "max":
        pooled /= np.float32(kernel_size)
    return pooled


def weighed(votes: Floats, kernel_size: int, pooling: Pooling, self_weight: float) -> Floats:
    """What a query head's positions are ranked by: the pooled vote, and self_weight times the vote itself.

    Args:
        votes: [..., m], not negative.
        kernel_size, pooling: as for pool().

    Returns:
        [..., m].
    """
    pooled = pool(votes, kernel_size, pooling)
    return pooled + np.float32(self_weight) * votes if self_weight else pooled


def group_mean(votes: Floats, n_head_kv: int) -> Scores:
    """Mean over the query heads that share a KV head: [n_head, m] -> [n_head_kv, m]."""
    n_head, m = votes.shape
    mean: Scores = votes.reshape(n_head_kv, n_head // n_head_kv, m).mean(axis=1)
    return mean
