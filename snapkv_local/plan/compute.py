"""Compute buffers of llama.cpp's graphs and of ours.

They have no formula in any source: ggml's allocator overlays tensors by their lifetime.
This model counts what is alive at the largest moment of a graph, in float32 elements for each token
of a chunk (n):

    feed-forward        F = 3 n_ff + 2 n_embd + n_q, of which n_q is where attention's result was: a hole
                            that nothing larger fits into. With MLA that is smaller than the queries.
                            Without a gate, 2 n_ff
    attention           A = n_embd + 3 n_q + 2 n_kv
    input               4 n n_embd: llama.cpp's place for a prompt of embeddings, empty with tokens
    plain, a layer      4 n max(F, A) + input + mask of 2 bytes [n, n_cells]
    plain, the output   4 n (n_vocab + n_embd) + input: logits are reserved for a whole ubatch
    ours                4 n max(F, A) + input; in one group of all layers there is no hole if n_q is at
                            most n_embd
    ours, last chunk    4 m max(F, A) + 4 m n_q min(G, n_layer - 1) + input
    experts             M = n_used n_embd more, what they give before it is summed, if it does not fit into
                            the hole that two of the three n_ff leave; then there is no hole of n_q
    recurrent           R = 2 n_embd + 3 c, and for Mamba 3 i more and the state, where c are the
                            convolution's channels and i the elements of all heads; a model with such
                            layers has no hole of n_q
    ours, scoring       8 n_prompt n_head_kv of votes and mass, and the softmax's statistics

where m is the length of the last chunk, in which the queries of the group's layers live until its
end, or n if a full chunk has a part of the window. Our logits are those of one token. Without a GPU
the rows of logits that nobody asks for are only reserved and take no memory, so they do not count.
Beside a GPU the input, the embedded tokens (4 n n_embd) and llama.cpp's own mask are in host memory.

It was derived from graphs of made models on the CPU, of several n_ff, n_embd, n_q and n_kv, and gives
their compute buffers and those in results/ but for 23 KB of tokens, positions and cells, with a last
chunk that is full and with ones that are not (tests/unit/test_plan.py). Mixtures and hybrids were
measured on shapes of bench/shapes.py with all numbers divided by four, a chunk of 128 among them: most
are within 5 %, and a test has them all. On CUDA devices Gemma 4 26B-A4B takes 41 % more than this, 0.3 %
of all that it takes there: the sum of its experts is one kernel, until which all that they gave is
kept. A is an upper bound for models
whose n_ff is below n_embd; none of those that were measured on a GPU comes near it. That is for f16:
with quantized KV llama.cpp rotates queries and keys, which mostly fills the hole.
"""

from __future__ import annotations

from collections.abc import Iterable

from snapkv_local.config import SnapKVConfig
from snapkv_local.plan.kinds import Layer, window
from snapkv_local.plan.layers import N_PAD, Part, Place, cached_layers, pad
from snapkv_local.plan.model import PlannedModel

# of the softmax's statistics: ranges of keys that are computed side by side (snapkv_op_n_splits())
KEYS_PER_SPLIT = 1024
MAX_SPLITS = 128


def votes(model: PlannedModel, n_prompt: int, config: SnapKVConfig, fused: bool) -> int:
    """Scratch of scoring a layer, by which the engine plans: fused, or of one head with ops of ggml."""
    cached, n_max = [model.layers[il] for il in cached_layers(model)], pad(n_prompt, N_PAD)
    if fused:
        return max(n_max * 2 * layer.n_head_kv * 4 for layer in cached)
    return max(
        n_max * (layer.head_k + 3 * config.window_size * layer.n_voters // layer.n_head_kv) * 4
        for layer in cached
    )


def _scoring(model: PlannedModel, n_prompt: int, config: SnapKVConfig, fused: bool) -> int:
    """Of the graph that scores a layer."""
    if not fused:
        return votes(model, n_prompt, config, fused)
    planes = 1 + min(-(-n_prompt // KEYS_PER_SPLIT), MAX_SPLITS)
    return max(
        n_prompt * 2 * model.layers[il].n_head_kv * 4
        + 2 * config.window_size * model.layers[il].n_voters * planes * 4
        for il in cached_layers(model)
    )


def _elements(model: PlannedModel, n: int, layers: Iterable[Layer], whole: bool = False) -> int:
    """float32 elements of a token that are alive at the largest moment of layers, but for the input.

    Args:
        n: tokens of the chunk.
        whole: the layers of the model are one group, and the last chunk is another graph.
    """
    n_embd = model.shape.n_embd
    has_holes = not any(layer.is_recurrent for layer in model.layers)
    found = [0]
    for layer in layers:
        experts = layer.n_expert_used * n_embd
        n_ff = (3 if layer.is_gated else 2) * layer.n_ff
        spills = layer.is_gated and experts > 2 * layer.n_ff
        filled = spills or not has_holes or (whole and layer.n_result <= n_embd)
        hole = 0 if filled else layer.n_result
        found.append(n_ff + 2 * n_embd + (experts + n_embd if spills else hole))
        found.append(n_embd + 3 * layer.n_q + 2 * layer.n_head_kv * layer.head_k)
        if layer.is_recurrent:
            found.append(layer.n_mix + layer.bytes_state // 4 // n + 2 * n_embd)
    return max(found)


def reserved(model: PlannedModel, n_cells: int, n_ubatch: int) -> int:
    """Bytes of the compute buffer that llama.cpp reports without a GPU."""
    inputs = 4 * n_ubatch * model.shape.n_embd
    return ordinary(model, n_cells, n_ubatch, Place(gpu=True)).main + inputs


def ordinary(model: PlannedModel, n_cells: int, n_ubatch: int, place: Place) -> Part:
    """Of a graph of the whole model, for a ubatch and a cache of n_cells."""
    n_embd = model.shape.n_embd
    mask = 2 * n_ubatch * n_cells
    if any(layer.is_swa for layer in model.layers):
        mask += 2 * n_ubatch * pad(min(n_cells, window(model.shape) + n_ubatch), N_PAD)
    inputs = 4 * n_ubatch * n_embd
    layer = 4 * n_ubatch * _elements(model, n_ubatch, model.layers) + mask
    output = 4 * n_ubatch * (model.shape.n_vocab + n_embd)
    if not place.gpu:
        # memory that is reserved and never written takes none, and of the logits one row is written
        return Part(layer + inputs)
    host = mask + 2 * inputs
    if place.n_resident(model.shape.n_layer) < model.shape.n_layer:
        host = max(host, layer + inputs)
    return Part(max(layer, output), host)


def of_group(
    model: PlannedModel,
    n_prompt: int,
    config: SnapKVConfig,
    n_q: int,
    group: int,
    n_ubatch: int,
    place: Place,
) -> Part:
    """Of a prefill by groups of `group` layers, scoring included; n_q: elements of all query heads."""
    n_first = min(n_ubatch, n_prompt)
    n_last = n_prompt % n_ubatch or n_first
    n_live = n_first if n_last < config.window_size else n_last
    queries = n_q * min(group, model.shape.n_layer - 1)
    inputs = 0 if place.gpu else model.shape.n_embd
    cached = cached_layers(model)
    whole = group >= len(cached)
    # layers that are computed while queries live: those behind one in its group
    behind = model.layers[cached[0] :]
    if group == 1:
        behind = (*(model.layers[il] for il in cached), *model.layers[cached[-1] :])
    main = max(
        4 * n_first * (_elements(model, n_first, model.layers, whole) + inputs),
        4 * n_live * (_elements(model, n_live, behind) + inputs + queries),
        _scoring(model, n_prompt, config, place.fused),
    )
    return Part(main, 2 * 4 * n_first * model.shape.n_embd if place.gpu else 0)
