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
    ours                4 n max(F, A) + input + mask of sliding-window layers
    experts             M = n_used n_embd more, what they give before it is summed, if it does not fit into
                            the hole that two of the three n_ff leave; n_embd more then, if the hole of n_q
                            is smaller. Without a gate, M + n_ff
    experts, on a GPU   M once more, if that does not fit into what the n_ff leave: see below
    recurrent           R = 2 n_embd + 3 c, and for Mamba 3 i more and the state, where c are the
                            convolution's channels and i the elements of all heads; a model with such
                            layers has no hole of n_q
    added embeddings    P = n_layer times the embedding that a layer adds. The first layer has P + n_embd
                            more; later ones have 2 P + n_embd + 3 n_ff, and the hidden state in a hole.
                            P once more, as it is read: in host memory beside a GPU
    quantized KV, CUDA  Q = 2 n_embd + 2 n_q, and 2 bytes for each element of the layer's K and V: see below
    ours, scoring       8 n_prompt n_head_kv of votes and mass, and the softmax's statistics
    ours, looking ahead 4 n (n_embd + n_kv of K and of V) + input, where n may be four chunks

Our logits are those of one token. The queries of the window are copied behind their attention, so they
add nothing (csrc/graph/cut.h). Without a GPU the rows of logits that nobody asks for are only reserved
and take no memory, so they do not count. Beside a GPU the input, the embedded tokens (4 n n_embd) and
masks of llama.cpp are in host memory as well.

What a GPU computes as one node keeps its inputs until then. CUDA's and HIP's graph optimization
(ggml_cuda_match_moe_weighted_reduction() in ggml-cuda.cu) does so with the sum of 2 to 15 experts, Metal's
(ops_moe_reduce_2 to _8 in ggml-metal-fusion.cpp) with that of 2 to 8: what the experts give may not be
overwritten by the same times its weight. Processors have no such step, and Vulkan, which no device
of ours stands for, none for experts' sums.

CUDA's flash attention widens quantized K and V to f16 in its own result's buffer
(ggml_cuda_flash_attn_ext_get_alloc_size() in fattn.cu). That fits into no hole, so all that was computed
before lies below it, freed or not: the hidden state, and normed (2 n_embd), queries as they were rotated
(n_q), and then its result (n_q). Beside these

    gated attention     3 n_q: queries with their gates, and normed
    MLA                 the latent of queries, queries before they meet K's latent, and after
    experts             where the same graph has them before: a hole of n_embd, and of the queries of
                            sliding-window layers, if the matrix of queries gives more; or 3 n_ff, with
                            the hidden state behind them, if all that they give fits in there, weighted
    added embeddings    2 P + n_embd, and the first layer's queries

It was derived from graphs of made models on the CPU, of several n_ff, n_embd, n_q and n_kv, and from the
same graphs with CUDA's graph optimization, and gives their compute buffers and those in results/ within
5 % (tests/unit/test_plan.py), dense ones but for 23 KB of tokens, positions and cells. What an H200
took for 14 shapes is in tests/unit/test_plan_measured.py. Mixtures and
hybrids were measured on shapes of bench/shapes.py with all numbers divided by four, a chunk of 128
among them. A is an upper bound for models whose n_ff is below n_embd; none of those that were measured
on a GPU comes near it. That is for f16: with quantized KV llama.cpp rotates queries and keys, which
mostly fills the hole.
"""

from __future__ import annotations

from snapkv_local.config import SnapKVConfig
from snapkv_local.plan import selective
from snapkv_local.plan.kinds import Layer, window
from snapkv_local.plan.layers import CPU, N_PAD, KvType, Part, Place, cached_layers, pad
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


def _scoring(model: PlannedModel, n_prompt: int, config: SnapKVConfig) -> int:
    """Of the graph that scores a layer."""
    if config.ops == "ggml":
        return votes(model, n_prompt, config, fused=False)
    planes = 1 + min(-(-n_prompt // KEYS_PER_SPLIT), MAX_SPLITS)
    return max(
        n_prompt * 2 * model.layers[il].n_head_kv * 4
        + 2 * config.window_size * model.layers[il].n_voters * planes * 4
        for il in cached_layers(model)
    )


# experts whose sum a GPU computes as one node: two, and so many at most
_MOST_SUMMED = {"cuda": 15, "hip": 15, "metal": 8}


def _feed_forward(layer: Layer, n_embd: int, hole: int, place: Place) -> int:
    """float32 elements of a token at the largest moment of a feed-forward layer, or of its experts."""
    n_ff = (3 if layer.is_gated else 2) * layer.n_ff
    given = layer.n_expert_used * n_embd
    if not given:
        return n_ff + 2 * n_embd + hole
    kept = place.gpu and 2 <= layer.n_expert_used <= _MOST_SUMMED[place.kind]
    if layer.is_gated and given <= 2 * layer.n_ff:
        return max(n_ff, 2 * given if kept else 0) + 2 * n_embd + hole
    n_ff = 3 * layer.n_ff if layer.is_gated else layer.n_ff
    weighted = given if kept and given > n_ff else 0
    # where a dense layer comes first, it fills the hole
    return n_ff + given + weighted + 2 * n_embd + (n_embd if layer.has_dense else max(hole, n_embd))


def _attention(layer: Layer, n_embd: int) -> int:
    """The same of attention."""
    return n_embd + 3 * layer.n_q + 2 * layer.n_head_kv * layer.head_k


def _elements(model: PlannedModel, n: int, place: Place) -> int:
    """float32 elements of a token that are alive at the largest moment of a chunk of n, but for the input."""
    n_embd = model.shape.n_embd
    has_holes = not any(layer.is_recurrent for layer in model.layers)
    found = [0]
    for layer in model.layers:
        found.append(_feed_forward(layer, n_embd, layer.n_result if has_holes else 0, place))
        if model.n_added:
            found[-1] = 2 * model.n_added + n_embd + 3 * layer.n_ff
        found.append(_attention(layer, n_embd))
        if layer.is_recurrent:
            found.append(layer.n_mix + layer.bytes_state // 4 // n + 2 * n_embd)
    if model.n_added:
        first = model.layers[0]
        found.append(model.n_added + n_embd + _feed_forward(first, n_embd, first.n_result, place))
    return max(found)


def _placed(model: PlannedModel, layer: Layer, is_joined: bool) -> int:
    """float32 elements of a token up to attention's result, where that fits into no hole."""
    n_embd = model.shape.n_embd
    if model.n_added:
        return 2 * model.n_added + 3 * n_embd + model.layers[0].n_q + layer.n_placed // 2
    # experts before it leave the hidden state behind holes
    left = 0
    if is_joined and not layer.is_swa:
        n_swa = max((each.n_q for each in model.layers if each.is_swa), default=0)
        for each in model.layers:
            given = each.n_expert_used * n_embd
            if given and layer.n_projected > n_embd + n_swa:
                left = max(left, n_embd + n_swa)
            if each.is_gated and 2 * each.n_ff < given <= 3 * each.n_ff:
                left = max(left, 3 * each.n_ff)
    return 2 * n_embd + layer.n_placed + left


def _window_cells(model: PlannedModel, n_cells: int, n: int) -> int:
    """Cells of sliding-window layers, which a chunk of n sees; 0 without such layers."""
    if not any(layer.is_swa for layer in model.layers):
        return 0
    return pad(min(n_cells, window(model.shape) + n), N_PAD)


def _layers(
    model: PlannedModel, n_cells: int, n: int, kv_type: KvType, place: Place, is_joined: bool
) -> int:
    """Bytes at the largest moment of the layers, but for inputs.

    n_cells are of layers of full attention; is_joined: a graph has several layers.
    """
    most = 4 * n * _elements(model, n, place)
    if kv_type == "f16" or not place.gpu or place.kind == "metal":
        return most
    n_swa = _window_cells(model, n_cells, n)
    for layer in model.layers:
        widened = 2 * layer.n_row * (n_swa if layer.is_swa else n_cells)
        most = max(most, 4 * n * _placed(model, layer, is_joined) + widened)
    return most


def reserved(model: PlannedModel, n_cells: int, n_ubatch: int) -> int:
    """Bytes of the compute buffer that llama.cpp reports without a GPU."""
    inputs = 4 * n_ubatch * model.shape.n_embd
    return max(
        ordinary(model, n_cells, n_ubatch, "f16", CPU).main, _output(model, n_ubatch) + inputs
    )


def _output(model: PlannedModel, n_ubatch: int) -> int:
    return 4 * n_ubatch * (model.shape.n_vocab + model.shape.n_embd)


def ordinary(
    model: PlannedModel, n_cells: int, n_ubatch: int, kv_type: KvType, place: Place
) -> Part:
    """Of a graph of the whole model, for a ubatch and a cache of n_cells."""
    mask = 2 * n_ubatch * (n_cells + _window_cells(model, n_cells, n_ubatch))
    inputs = 4 * n_ubatch * model.shape.n_embd
    layer = _layers(model, n_cells, n_ubatch, kv_type, place, True) + mask
    if not place.gpu:
        # memory that is reserved and never written takes none, and of the logits one row is written
        return Part(layer + inputs + 4 * n_ubatch * model.n_added)
    host = mask + 2 * inputs + 4 * n_ubatch * model.n_added
    if place.n_resident(model.shape.n_layer) < model.shape.n_layer:
        host = max(host, layer + inputs)
    return Part(max(layer, _output(model, n_ubatch)), host)


def of_group(
    model: PlannedModel,
    n_prompt: int,
    config: SnapKVConfig,
    kv_type: KvType,
    n_ubatch: int,
    place: Place,
    group: int,
    hidden_host: bool = False,
) -> Part:
    """Of a prefill by groups of layers, `group` in each, scoring and looks ahead included."""
    n = min(n_ubatch, n_prompt)
    n_max = pad(n_prompt, N_PAD)
    inputs = 4 * n * model.shape.n_embd
    mask = 2 * n * _window_cells(model, n_max, n)
    is_joined = group > 1 or not all(layer.is_cached for layer in model.layers)
    layers = _layers(model, n_max, n, kv_type, place, is_joined) + mask
    scoring = _scoring(model, n_prompt, config)
    ahead, ahead_inputs = selective.bytes_ahead(model, n_prompt, config, n_ubatch, hidden_host)
    if not place.gpu:
        whole = layers + inputs + 4 * n * model.n_added
        return Part(max(whole, scoring, ahead + ahead_inputs))
    host = 2 * inputs + mask + 4 * n * model.n_added
    return Part(max(layers, scoring, ahead), max(host, ahead_inputs))
