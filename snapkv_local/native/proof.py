"""Is a prefill by layer groups exact on a device? Asked of a small model that is made for it."""

from __future__ import annotations

import ctypes
from dataclasses import asdict, dataclass
from typing import Any

from snapkv_local.native import api, failure, support, voices

ALL_LAYERS = 2**32 - 1


@dataclass(frozen=True)
class Question:
    """What is computed.

    Attributes:
        head_dim: elements of a head, of K and V.
        n_head: query heads.
        n_head_kv: KV heads.
        kv_type: of the KV cache, such as "q8_0".
        layer_group: layers at a time; 0 for all.
        n_tokens: of the prompt.
        n_ubatch: tokens computed at once.
    """

    head_dim: int = 128
    n_head: int = 8
    n_head_kv: int = 2
    kv_type: str = "f16"
    layer_group: int = 1
    n_tokens: int = 700
    n_ubatch: int = 100


def prove(device: str, question: Question) -> dict[str, Any]:
    """The question by name, and what came out, as llama_snapkv_proof of csrc/snapkv.h names it.

    Not all of it is a verdict: `max_diff` is 0 where the prefill is exact, `max_diff_ops` is
    near 0 (-1: no fused ops), and the rest is for people.

    Args:
        device: ggml's name of it, such as "CPU" or "Vulkan0". Whether it is proven is not asked.

    Raises:
        NativeError: it cannot be computed there.
        OutOfMemoryError: for want of memory.
    """
    kv_type = support.ggml_type(question.kv_type)
    proof = api.llama_snapkv_default_proof()
    proof.head_dim_k = proof.head_dim_v = question.head_dim
    proof.n_head, proof.n_head_kv = question.n_head, question.n_head_kv
    proof.type_k = proof.type_v = kv_type
    proof.n_tokens, proof.n_ubatch = question.n_tokens, question.n_ubatch
    proof.layer_group = question.layer_group or ALL_LAYERS
    with voices.heard() as said:
        if not api.llama_snapkv_prove(device.encode(), ctypes.byref(proof)):
            failure.fail(device, said.reason)
    outcome = (name for name, *_ in proof._fields_[_FIRST_OUTCOME:])
    return {**asdict(question), **{name: getattr(proof, name) for name in outcome}}


_FIRST_OUTCOME = 10  # of the structure's fields
