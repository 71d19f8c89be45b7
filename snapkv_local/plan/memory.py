"""Bytes by part: of plain llama.cpp with its full KV cache, and of a prefill by layer groups.

The formulas are those of the code that allocates:

- KV rows: llama-kv-cache.cpp; cells are padded to 256, our compact cache without a GPU to 32
  (cells_needed() in snapkv.cpp). A cache of sliding-window layers has cells for the window and one
  ubatch (llama-kv-cache-iswa.cpp, swa_full off).
- Staging, hidden state, queries and mask: snapkv-staging.cpp and snapkv-hidden.cpp.
- Weights: the token embedding stays in host memory; the last N layers go to the GPU, and the output
  matrix with the first of them (llama-model.cpp). Lent weights: snapkv-weights.cpp.

Compute buffers have no formula in any source: ggml's allocator overlays tensors by their lifetime.
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

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from snapkv_local.config import SnapKVConfig
from snapkv_local.plan.model import PlannedModel, window

KvType = Literal["f16", "q8_0", "q4_0"]

# bytes and elements of a block
KV_TYPES: dict[KvType, tuple[int, int]] = {"f16": (2, 1), "q8_0": (34, 32), "q4_0": (18, 32)}

N_PAD = 256  # LLAMA_SNAPKV_N_KV_PAD, and n_ctx of llama.cpp
N_PAD_CPU = 32
N_UBATCH = 512

# A process that uses CUDA takes this much of the device before its first tensor: context, kernels,
# workspaces. results/gpu-nvidia-h100-80gb-hbm3.json, peak_device less all parts: 623 to 643 MB in the
# 16 runs of one sequence, which the constant is taken from. For other GPUs the same is assumed.
CUDA_CONTEXT = 630_000_000

# Python, NumPy, the command line, libllama and its graphs, and the vocabulary, for which llama.cpp has
# strings and maps: the peak RSS of `plan --measure` less all other parts, with the demo model on
# Linux. Python versions and systems differ by some MB.
PROCESS = 82_000_000
PROCESS_PER_TOKEN = 280


@dataclass(frozen=True)
class Place:
    """Where layers are computed.

    Attributes:
        gpu: there is a GPU, beside the host's memory or sharing it.
        n_gpu_layers: layers on it, as in llama.cpp, where the output counts as one more; None for
            all.
        fused: our fused ops run there; else the stock ops, which need more scratch memory.
        context: bytes that the GPU's driver takes for a process. Not measured but on CUDA; with
            HIP the same is assumed, and nothing with Metal.
    """

    gpu: bool
    n_gpu_layers: int | None = None
    fused: bool = True
    context: int = CUDA_CONTEXT

    def n_resident(self, n_layer: int) -> int:
        """Layers whose weights are on the GPU."""
        if not self.gpu:
            return 0
        if self.n_gpu_layers is None:
            return n_layer
        return min(max(self.n_gpu_layers - 1, 0), n_layer)


CPU = Place(gpu=False)


@dataclass(frozen=True)
class Part:
    """One kind of memory.

    Attributes:
        main: bytes where the layers are computed: on the GPU, or in the host's memory without one.
        host: bytes in host memory beside a GPU.
    """

    main: int
    host: int = 0

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.main + self.host


@dataclass(frozen=True)
class Estimate:
    """What one way of running takes.

    Attributes:
        name: of the way.
        n_prompt: tokens of the prompt.
        kv_type: of the KV cache.
        layer_group: G; 0 for plain llama.cpp.
        chunk: tokens that are computed at once.
        hidden_host: the hidden state is in host memory, beside a GPU.
        parts: by name, at the peak of the prefill.
        decode: the compute buffer that generation takes instead of the prefill's, and staging,
            hidden state, mask and lent weights.
    """

    name: str
    n_prompt: int
    kv_type: KvType
    layer_group: int
    chunk: int
    hidden_host: bool
    parts: dict[str, Part]
    decode: Part

    @property
    def peak(self) -> int:
        """Bytes at the highest moment, where the layers are computed."""
        return max(
            sum(part.main for part in self.parts.values()),
            sum(self.parts[name].main for name in _LASTING if name in self.parts)
            + self.decode.main,
        )

    @property
    def peak_host(self) -> int:
        """Bytes in host memory beside a GPU; 0 without one."""
        return max(
            sum(part.host for part in self.parts.values()),
            sum(self.parts[name].host for name in _LASTING if name in self.parts)
            + self.decode.host,
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "n_prompt": self.n_prompt,
            "kv_type": self.kv_type,
            "layer_group": self.layer_group,
            "chunk": self.chunk,
            "hidden_host": self.hidden_host,
            "peak": self.peak,
            "peak_host": self.peak_host,
            "parts": {n: {"main": p.main, "host": p.host} for n, p in self.parts.items()},
            "decode_compute": {"main": self.decode.main, "host": self.decode.host},
        }


_LASTING = ("weights", "kv", "process")


def pad(n: int, to: int) -> int:
    """The next multiple."""
    return -(-n // to) * to


def row_bytes(model: PlannedModel, il: int, kv_type: KvType) -> int:
    """Bytes of a position's K and V in one layer, all heads."""
    n_bytes, block = KV_TYPES[kv_type]
    shape = model.shape
    return shape.n_head_kv[il] * (shape.head_k + shape.head_v) * n_bytes // block


def cached_layers(model: PlannedModel) -> list[int]:
    """Layers that are compressed: those with KV heads and without a sliding window."""
    return [
        il
        for il in range(model.shape.n_layer)
        if not model.is_swa[il] and model.shape.n_head_kv[il] > 0
    ]


def lends(model: PlannedModel, place: Place) -> bool:
    """Whether layers in host memory are computed on the GPU, with lent weights (snapkv-place.cpp)."""
    n_layer = model.shape.n_layer
    equal = len({row_bytes(model, il, "f16") for il in range(n_layer)}) == 1
    return 0 < place.n_resident(n_layer) < n_layer and equal and not any(model.is_swa)


def max_group(model: PlannedModel, place: Place) -> int:
    """The largest G."""
    n_resident = place.n_resident(model.shape.n_layer)
    return n_resident if lends(model, place) else len(cached_layers(model))


def plain(
    model: PlannedModel, n_prompt: int, room: int, kv_type: KvType, place: Place = CPU
) -> Estimate:
    """llama.cpp with its full cache, for a prompt and room tokens after it."""
    n_cells = pad(n_prompt + room, N_PAD)
    n_ubatch = min(N_UBATCH, n_cells)
    compute = _ordinary_compute(model, n_cells, n_ubatch, place)
    parts = {
        "weights": _weights(model, place),
        "kv": _kv(model, n_cells, n_cells, n_ubatch, kv_type, place),
        "compute": compute,
        "process": _process(model, place),
    }
    return Estimate(f"plain {kv_type}", n_prompt, kv_type, 0, n_ubatch, False, parts, compute)


def compressed(
    model: PlannedModel,
    n_prompt: int,
    config: SnapKVConfig,
    kv_type: KvType,
    place: Place = CPU,
    *,
    group: int,
    chunk: int = N_UBATCH,
    hidden_host: bool = False,
    name: str = "ours",
) -> Estimate:
    """A prefill by groups of `group` layers, and the compact cache that it leaves.

    Args:
        n_prompt: tokens; plain() is what happens where the configuration keeps all of them.
        group: G, at most max_group().
        chunk: tokens that are computed at once.
        hidden_host: beside a GPU, the hidden state in host memory.
    """
    shape = model.shape
    layers = cached_layers(model)
    n_max = pad(n_prompt, N_PAD)
    n_full = pad(n_prompt + config.room, N_PAD)
    n_kept = config.n_kept(n_prompt)
    wanted = pad(config.n_kept(n_full) + config.room, N_PAD if place.gpu else N_PAD_CPU)
    n_cells = min(n_full, wanted)
    lent = lends(model, place)
    ordinary = _ordinary_compute(model, n_cells, min(N_UBATCH, n_full), place)
    parts = {
        "weights": _weights(model, place),
        "kv": _kv(model, n_cells, n_full, N_UBATCH, kv_type, place),
    }
    if n_kept >= n_prompt:
        parts |= {"compute": ordinary, "process": _process(model, place)}
        return Estimate(name, n_prompt, kv_type, 0, N_UBATCH, False, parts, ordinary)

    n_rows: Counter[int] = Counter(row_bytes(model, il, kv_type) for il in layers)
    staging = sum(min(group, n) * row * n_max for row, n in n_rows.items())
    n_q = max(shape.n_head[il] for il in layers) * shape.head_k
    queries = 4 * n_q * config.window * group
    state = 4 * shape.n_embd * n_prompt if group < len(layers) else 0
    slots = 2 * 4 * shape.n_embd * chunk if state and hidden_host else 0
    rows = max(chunk, config.window)
    mask = 2 * rows * (n_max + pad(rows, N_PAD) + N_PAD)
    parts |= {
        "staging": Part(staging),
        "hidden": Part(slots + queries, state) if hidden_host else Part(state + queries),
        "mask": Part(mask),
        "compute": _group_compute(model, n_prompt, config, n_q, group, chunk, place),
    }
    if lent:
        n_host = shape.n_layer - place.n_resident(shape.n_layer)
        host = model.bytes_layers[:n_host]
        parts["lent weights"] = Part(max(sum(host[i : i + group]) for i in range(0, n_host, group)))
    parts["process"] = _process(model, place)
    return Estimate(name, n_prompt, kv_type, group, chunk, hidden_host, parts, ordinary)


def engine_estimate(
    model: PlannedModel,
    n_prompt: int,
    config: SnapKVConfig,
    kv_type: KvType,
    group: int,
    chunk: int,
    hidden_host: bool,
) -> int:
    """Bytes on the device by which the engine chooses its plan (snapkv-plan.cpp); on the safe side."""
    shape, layers = model.shape, cached_layers(model)
    n_max = pad(n_prompt, N_PAD)
    layer = sum(row_bytes(model, il, kv_type) for il in layers) * n_max // len(layers)
    hidden = 0
    if group < len(layers):
        hidden = 4 * shape.n_embd * (2 * chunk if hidden_host else n_prompt)
    mask_row = 2 * (n_max + N_UBATCH + 2 * N_PAD)
    compute_row = max(
        4 * (3 * model.n_ff[il] + 4 * shape.n_head[il] * shape.head_k + 4 * shape.n_embd)
        for il in layers
    )
    votes = _votes(model, n_prompt, config, fused=config.ops == "fused")
    margin = 320 << 20
    return group * layer + hidden + chunk * (mask_row + compute_row) + votes + margin


def _votes(model: PlannedModel, n_prompt: int, config: SnapKVConfig, fused: bool) -> int:
    """Scratch of scoring a layer: fused, or of one head with stock ops."""
    shape, n_max = model.shape, pad(n_prompt, N_PAD)
    if fused:
        return max(n_max * 2 * shape.n_head_kv[il] * 4 for il in cached_layers(model))
    return max(
        n_max * (shape.head_k + 3 * config.window * shape.n_head[il] // shape.n_head_kv[il]) * 4
        for il in cached_layers(model)
    )


def _weights(model: PlannedModel, place: Place) -> Part:
    if not place.gpu or place.n_gpu_layers == 0:
        total = model.bytes_weights
        return Part(0, total) if place.gpu else Part(total)
    n_host = model.shape.n_layer - place.n_resident(model.shape.n_layer)
    host = model.bytes_input + sum(model.bytes_layers[:n_host])
    return Part(sum(model.bytes_layers[n_host:]) + model.bytes_output, host)


def _kv(
    model: PlannedModel, n_cells: int, n_full: int, n_ubatch: int, kv_type: KvType, place: Place
) -> Part:
    """n_cells: of ordinary layers; those of sliding-window layers follow from n_full."""
    n_swa = pad(min(n_full, window(model.shape) + n_ubatch), N_PAD)
    layers = [
        row_bytes(model, il, kv_type) * (n_swa if model.is_swa[il] else n_cells)
        for il in range(model.shape.n_layer)
    ]
    n_host = len(layers) - place.n_resident(len(layers)) if place.gpu else 0
    return Part(sum(layers[n_host:]), sum(layers[:n_host]))


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


def reserved_compute(model: PlannedModel, n_cells: int, n_ubatch: int) -> int:
    """Bytes of the compute buffer that llama.cpp reports where layers are computed."""
    return _ordinary_compute(model, n_cells, n_ubatch, Place(gpu=True)).main


def _ordinary_compute(model: PlannedModel, n_cells: int, n_ubatch: int, place: Place) -> Part:
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


def _group_compute(
    model: PlannedModel,
    n_prompt: int,
    config: SnapKVConfig,
    n_q: int,
    group: int,
    chunk: int,
    place: Place,
) -> Part:
    n_first = min(chunk, n_prompt)
    n_last = n_prompt % chunk or n_first
    n_live = n_first if n_last < config.window else n_last
    full = _elements(model)
    queries = n_q * min(group, model.shape.n_layer - 1)
    main = max(4 * n_first * full, 4 * n_live * (full + queries))
    main = max(main, _votes(model, n_prompt, config, place.fused))
    return Part(main, 4 * n_first * model.shape.n_embd if place.gpu else 0)


def _process(model: PlannedModel, place: Place) -> Part:
    host = PROCESS + PROCESS_PER_TOKEN * model.shape.n_vocab
    return Part(place.context, host) if place.gpu else Part(host)
