"""Shapes of real models: what a GGUF file of random weights is made after."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Blueprint:
    """The numbers of a model that its tensors and its graph follow from.

    Attributes:
        arch: llama.cpp's name of the architecture.
        n_layer: layers.
        n_embd: elements of the hidden state.
        n_ff: elements between the matrices of a feed-forward layer, or of one expert.
        n_head: query heads.
        n_head_kv: KV heads.
        head_dim: elements of a head.
        n_vocab: tokens of the vocabulary.
        rope_base: base of RoPE's frequencies.
        eps: of the RMS norms.
        tied: the output matrix is the token embedding.
        qk_norm: queries and keys are normalized.
        post_norm: attention and feed-forward results are normalized, too.
        n_expert: experts of a mixture, 0 for a dense model.
        n_expert_used: experts that a token goes through.
        n_swa: sliding window of the layers that have one, in tokens; 0 for none.
        rope_llama3: factor of Llama 3's frequency scaling, 0 for none.
        rope_linear: factor of linear scaling, 0 for none.
    """

    arch: str
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_vocab: int
    rope_base: float
    eps: float = 1e-5
    tied: bool = False
    qk_norm: bool = False
    post_norm: bool = False
    n_expert: int = 0
    n_expert_used: int = 0
    n_swa: int = 0
    rope_llama3: float = 0.0
    rope_linear: float = 0.0


_LLAMA3: dict[str, Any] = {"n_vocab": 128_256, "rope_base": 500_000.0}
_QWEN3: dict[str, Any] = {
    "n_vocab": 151_936,
    "rope_base": 1_000_000.0,
    "eps": 1e-6,
    "qk_norm": True,
}
_GEMMA3: dict[str, Any] = {
    "n_vocab": 262_144,
    "rope_base": 1_000_000.0,
    "eps": 1e-6,
    "tied": True,
    "qk_norm": True,
    "post_norm": True,
    "n_swa": 1024,
    "rope_linear": 8.0,
}

# arch, layers, hidden, feed-forward, heads, KV heads, head
SHAPES: dict[str, Blueprint] = {
    "llama31-8b": Blueprint("llama", 32, 4096, 14336, 32, 8, 128, **_LLAMA3, rope_llama3=8.0),
    "llama32-1b": Blueprint(
        "llama", 16, 2048, 8192, 32, 8, 64, **_LLAMA3, rope_llama3=32.0, tied=True
    ),
    "llama32-3b": Blueprint(
        "llama", 28, 3072, 8192, 24, 8, 128, **_LLAMA3, rope_llama3=32.0, tied=True
    ),
    "llama2-7b": Blueprint("llama", 32, 4096, 11008, 32, 32, 128, 32_000, 10_000.0),
    "mistral-7b": Blueprint("llama", 32, 4096, 14336, 32, 8, 128, 32_768, 1_000_000.0),
    "qwen3-8b": Blueprint("qwen3", 36, 4096, 12288, 32, 8, 128, **_QWEN3),
    "qwen3-30b-a3b": Blueprint(
        "qwen3moe", 48, 2048, 768, 32, 4, 128, **_QWEN3, n_expert=128, n_expert_used=8
    ),
    "gemma3-4b": Blueprint("gemma3", 34, 2560, 10240, 8, 4, 256, **_GEMMA3),
    "gemma3-12b": Blueprint("gemma3", 48, 3840, 15360, 16, 8, 256, **_GEMMA3),
    # of no real model: for tests. GPUs have no flash attention for heads under 64 elements
    "tiny": Blueprint("llama", 4, 256, 512, 4, 2, 64, 1024, 10_000.0),
}


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a file.

    Attributes:
        name: in the file.
        shape: in NumPy's order, the contiguous dimension last.
        kind: "matrix" has the file's type; "router" is random, "norm" ones and "rope" Llama 3's
            frequency factors, all in float32.
    """

    name: str
    shape: tuple[int, ...]
    kind: Literal["matrix", "router", "norm", "rope"]


def tensors(b: Blueprint, n_vocab: int) -> list[TensorSpec]:
    """All tensors of a model with a vocabulary of n_vocab tokens."""
    found: list[TensorSpec] = []

    def add(name: str, *shape: int, kind: Literal["matrix", "router", "norm", "rope"]) -> None:
        found.append(TensorSpec(f"{name}.weight", shape, kind))

    add("token_embd", n_vocab, b.n_embd, kind="matrix")
    add("output_norm", b.n_embd, kind="norm")
    if not b.tied:
        add("output", n_vocab, b.n_embd, kind="matrix")
    if b.rope_llama3:
        add("rope_freqs", b.head_dim // 2, kind="rope")
    for layer in range(b.n_layer):
        p = f"blk.{layer}."
        norms = ["attn_norm", "ffn_norm"]
        if b.post_norm:
            norms += ["post_attention_norm", "post_ffw_norm"]
        for name in norms:
            add(p + name, b.n_embd, kind="norm")
        if b.qk_norm:
            add(p + "attn_q_norm", b.head_dim, kind="norm")
            add(p + "attn_k_norm", b.head_dim, kind="norm")
        n_q, n_kv = b.n_head * b.head_dim, b.n_head_kv * b.head_dim
        add(p + "attn_q", n_q, b.n_embd, kind="matrix")
        add(p + "attn_k", n_kv, b.n_embd, kind="matrix")
        add(p + "attn_v", n_kv, b.n_embd, kind="matrix")
        add(p + "attn_output", b.n_embd, n_q, kind="matrix")
        suffix, experts = ("_exps", (b.n_expert,)) if b.n_expert else ("", ())
        if b.n_expert:
            add(p + "ffn_gate_inp", b.n_expert, b.n_embd, kind="router")
        add(p + f"ffn_gate{suffix}", *experts, b.n_ff, b.n_embd, kind="matrix")
        add(p + f"ffn_up{suffix}", *experts, b.n_ff, b.n_embd, kind="matrix")
        add(p + f"ffn_down{suffix}", *experts, b.n_embd, b.n_ff, kind="matrix")
    return found


def llama3_rope_factors(b: Blueprint) -> list[float]:
    """[head_dim / 2] divisors of RoPE's frequencies, as Llama 3.1 scales them from 8192 tokens.

    Wavelengths under a quarter of that length stay, those over it are stretched by the factor, and
    between the two it changes gradually.
    """
    n_ctx_old, low, high = 8192, 1.0, 4.0
    factors = []
    for i in range(0, b.head_dim, 2):
        turns = n_ctx_old / (2 * math.pi * b.rope_base ** (i / b.head_dim))
        share = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - share) / b.rope_llama3 + share))
    return factors
