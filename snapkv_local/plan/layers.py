"""Where layers are computed, and what they keep of a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from snapkv_local.plan.model import PlannedModel

KvType = Literal["f16", "q8_0", "q4_0"]

# bytes and elements of a block
KV_TYPES: dict[KvType, tuple[int, int]] = {"f16": (2, 1), "q8_0": (34, 32), "q4_0": (18, 32)}

N_PAD = 256  # LLAMA_SNAPKV_N_KV_PAD, and n_ctx of llama.cpp
N_PAD_CPU = 32
N_UBATCH = 512

# A process that uses CUDA takes this much of the device before its first tensor: context, kernels,
# workspaces. results/gpu-nvidia-h100-80gb-hbm3.json, peak_device less all parts: 630 to 634 MB in 17 of
# the 18 runs of one sequence, which the constant is taken from, and 651 MB in the one of llama.cpp with
# layers in host memory. For other GPUs the same is assumed.
CUDA_CONTEXT = 632_000_000


@dataclass(frozen=True)
class Place:
    """Where layers are computed.

    Attributes:
        gpu: there is a GPU, beside the host's memory or sharing it.
        n_gpu_layers: layers on it, as in llama.cpp, where the output counts as one more; None for
            all.
        context: bytes that the GPU's driver takes for a process. Not measured but on CUDA; with
            HIP the same is assumed, and nothing with Metal.
        kind: of the GPU, "cuda", "hip" or "metal": what ggml computes there as one, for which it keeps
            more than a processor needs (compute.py).
    """

    gpu: bool
    n_gpu_layers: int | None = None
    context: int = CUDA_CONTEXT
    kind: str = "cuda"

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


def pad(n: int, to: int) -> int:
    """The next multiple."""
    return -(-n // to) * to


def row_bytes(model: PlannedModel, il: int, kv_type: KvType) -> int:
    """Bytes of a position's K and V in one layer, all heads."""
    n_bytes, block = KV_TYPES[kv_type]
    return model.layers[il].n_row * n_bytes // block


def cached_layers(model: PlannedModel) -> list[int]:
    """Layers that are compressed: those with a KV cache of their own and without a sliding window."""
    return [il for il, layer in enumerate(model.layers) if layer.is_cached]


def lends(model: PlannedModel, place: Place) -> bool:
    """Whether layers in host memory are computed on the GPU, with lent weights (csrc/staging/place.cpp)."""
    n_layer = model.shape.n_layer
    equal = len({row_bytes(model, il, "f16") for il in range(n_layer)}) == 1
    own = any(layer.is_swa or layer.is_recurrent for layer in model.layers)
    return 0 < place.n_resident(n_layer) < n_layer and equal and not own


def max_group(model: PlannedModel, place: Place) -> int:
    """The largest G."""
    n_resident = place.n_resident(model.shape.n_layer)
    return n_resident if lends(model, place) else len(cached_layers(model))
