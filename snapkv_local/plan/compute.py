"""Compute buffers of llama.cpp's graphs and of ours.

They have no formula in any source: ggml's allocator overlays tensors by their lifetime.
This model counts what is alive at the largest moment of a graph, in float32 elements for each token
of a chunk (n):

    feed-forward        F = 3 n_ff + 4 n_embd
    attention           A = 2 n_embd + 3 n_q + 2 n_kv
    plain, a layer      4 n max(F, A) + mask of 2 bytes [n, n_cells]
    plain, the output   4 n (n_vocab + 2 n_embd): logits are reserved for a whole ubatch
    ours                4 n max(F, A) + 4 m n_q min(G, n_layer - 1)

where m is the length of the last chunk, in which the queries of the group's layers live until its
end, or n if a full chunk has a part of the window. Our logits are those of one token. Without a GPU
the rows of logits that nobody asks for are only reserved and take no memory, so they do not count.
Beside a GPU, the embedded tokens (4 n n_embd) and llama.cpp's own mask are in host memory as well.
It gives llama.cpp's figures for SmolLM2 at ubatches of 128 and 512 tokens and at contexts of 8K to
64K to 0.1 %, and those of results/gpu-*.json for the 8B and 7B shapes (tests/unit/test_plan.py). It
was derived from these same figures; other architectures were not measured. With a last chunk that is
not full it was off by 5 % once.
"""

from __future__ import annotations

from snapkv_local.config import SnapKVConfig
from snapkv_local.plan.layers import N_PAD, Part, Place, cached_layers, pad
from snapkv_local.plan.model import PlannedModel, window


def votes(model: PlannedModel, n_prompt: int, config: SnapKVConfig, fused: bool) -> int:
    """Scratch of scoring a layer: fused, or of one head with stock ops."""
    shape, n_max = model.shape, pad(n_prompt, N_PAD)
    if fused:
        return max(n_max * 2 * shape.n_head_kv[il] * 4 for il in cached_layers(model))
    return max(
        n_max * (shape.head_k + 3 * config.window * shape.n_head[il] // shape.n_head_kv[il]) * 4
        for il in cached_layers(model)
    )


def _elements(model: PlannedModel) -> int:
    """float32 elements of a token that are alive at the largest moment of a layer."""
    shape = model.shape
    return max(
        max(
            3 * model.n_ff[il] + 4 * shape.n_embd,
            2 * shape.n_embd
            + 3 * shape.n_head[il] * shape.head_k
            + 2 * shape.n_head_kv[il] * shape.head_k,
        )
        for il in range(shape.n_layer)
    )


def reserved(model: PlannedModel, n_cells: int, n_ubatch: int) -> int:
    """Bytes of the compute buffer that llama.cpp reports where layers are computed."""
    return ordinary(model, n_cells, n_ubatch, Place(gpu=True)).main


def ordinary(model: PlannedModel, n_cells: int, n_ubatch: int, place: Place) -> Part:
    """Of a graph of the whole model, for a ubatch and a cache of n_cells."""
    n_embd = model.shape.n_embd
    mask = 2 * n_ubatch * n_cells
    if any(model.is_swa):
        mask += 2 * n_ubatch * pad(min(n_cells, window(model.shape) + n_ubatch), N_PAD)
    layer = 4 * n_ubatch * _elements(model) + mask
    output = 4 * n_ubatch * (model.shape.n_vocab + 2 * n_embd)
    if not place.gpu:
        # memory that is reserved and never written takes none, and of the logits one row is written
        return Part(layer)
    host = mask + 4 * n_ubatch * n_embd
    if place.n_resident(model.shape.n_layer) < model.shape.n_layer:
        host = max(host, layer)
    return Part(max(layer, output), host)


def of_group(
    model: PlannedModel,
    n_prompt: int,
    config: SnapKVConfig,
    n_q: int,
    group: int,
    chunk: int,
    place: Place,
) -> Part:
    """Of a prefill by groups of `group` layers, scoring included; n_q: elements of all query heads."""
    n_first = min(chunk, n_prompt)
    n_last = n_prompt % chunk or n_first
    n_live = n_first if n_last < config.window else n_last
    full = _elements(model)
    queries = n_q * min(group, model.shape.n_layer - 1)
    main = max(4 * n_first * full, 4 * n_live * (full + queries))
    main = max(main, votes(model, n_prompt, config, place.fused))
    return Part(main, 4 * n_first * model.shape.n_embd if place.gpu else 0)
