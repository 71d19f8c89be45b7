"""The tensors of a model, as llama.cpp loads them (src/models/ARCH.cpp)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from snapkv_local.bench.blueprint import Blueprint

Kind = Literal["matrix", "random", "ones", "zeros", "decay", "step", "rope"]


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a file.

    Attributes:
        name: in the file.
        shape: in NumPy's order, the contiguous dimension last.
        kind: "matrix" has the file's type. All others are float32: "random" as matrices are, "ones" and
            "zeros"; "decay" and "step" are -1 and -4, with which a recurrent state forgets in some dozens
            of tokens; "rope" divides RoPE's frequencies.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind


def tensors(b: Blueprint, n_vocab: int) -> list[TensorSpec]:
    """All tensors of a model with a vocabulary of n_vocab tokens."""
    found = _Tensors()
    found.add("token_embd.weight", n_vocab, b.n_embd)
    # the name that LFM2's files have
    norm = "token_embd_norm" if b.arch == "lfm2moe" else "output_norm"
    found.add(f"{norm}.weight", b.n_embd, kind="ones")
    if not b.tied:
        found.add("output.weight", n_vocab, b.n_embd)
    if b.rope_llama3 or b.rope_share:
        found.add("rope_freqs.weight", b.head_dim // 2, kind="rope")
    if b.n_embd_layer:
        n_all = b.n_embd_layer * b.n_layer
        found.add("per_layer_token_embd.weight", n_vocab, n_all)
        found.add("per_layer_model_proj.weight", n_all, b.n_embd)
        found.add("per_layer_proj_norm.weight", b.n_embd_layer, kind="ones")
    for il in range(b.n_layer):
        layer = _Layer(b, il, found)
        layer.norms()
        layer.mix()
        if not b.own_ff or b.mixer(il) == "f":
            layer.feed_forward()
        if b.n_embd_layer:
            layer.weight("inp_gate", b.n_embd_layer, b.n_embd)
            layer.weight("proj", b.n_embd, b.n_embd_layer)
            layer.weight("post_norm", b.n_embd, kind="ones")
    return found.specs


class _Tensors:
    def __init__(self) -> None:
        self.specs: list[TensorSpec] = []

    def add(self, name: str, *shape: int, kind: Kind = "matrix") -> None:
        self.specs.append(TensorSpec(name, shape, kind))


class _Layer:
    """One layer's tensors."""

    def __init__(self, b: Blueprint, il: int, found: _Tensors) -> None:
        self.b, self.il, self.found = b, il, found

    def add(self, name: str, *shape: int, kind: Kind = "matrix") -> None:
        self.found.add(f"blk.{self.il}.{name}", *shape, kind=kind)

    def weight(self, name: str, *shape: int, kind: Kind = "matrix") -> None:
        self.add(f"{name}.weight", *shape, kind=kind)

    def norms(self) -> None:
        b = self.b
        names = ["attn_norm"]
        if b.arch in ("qwen35", "qwen35moe", "qwen3next", "gpt-oss"):
            names.append("post_attention_norm")  # the feed-forward layer's, under this name
        elif not b.own_ff:
            names.append("ffn_norm")
        if b.post_norm:
            names += ["post_attention_norm", "post_ffw_norm"]
        if b.experts and b.experts.beside_dense:
            names += ["pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2"]
        for name in names:
            self.weight(name, b.n_embd, kind="ones")

    def mix(self) -> None:
        mixer = self.b.mixer(self.il)
        if mixer == "r":
            assert self.b.recurrent is not None
            kinds = {"delta": self.delta, "mamba2": self.mamba2, "conv": self.conv}
            kinds[self.b.recurrent.kind]()
        elif mixer != "f":
            (self.latent if self.b.latent else self.attention)()

    def attention(self) -> None:
        b, head = self.b, self.b.head_size(self.il)
        n_q, n_kv = b.n_head * head, b.kv_heads(self.il) * head
        if b.qk_norm:
            self.weight("attn_q_norm", head, kind="ones")
            self.weight("attn_k_norm", head, kind="ones")
        rows = {"attn_q": n_q * (2 if b.gated else 1), "attn_k": n_kv}
        if not (b.k_is_v and b.mixer(self.il) == "a"):
            rows["attn_v"] = n_kv
        for name, n in rows.items():
            self.weight(name, n, b.n_embd)
        self.weight("attn_output", b.n_embd, n_q)
        if b.biases:
            for name, n in {**rows, "attn_output": b.n_embd}.items():
                self.add(f"{name}.bias", n, kind="zeros")
        if b.sinks:
            self.weight("attn_sinks", b.n_head, kind="zeros")

    def latent(self) -> None:
        b, latent = self.b, self.b.latent
        assert latent is not None
        self.weight("attn_q_a_norm", latent.n_lora_q, kind="ones")
        self.weight("attn_kv_a_norm", latent.n_lora_kv, kind="ones")
        self.weight("attn_q_a", latent.n_lora_q, b.n_embd)
        self.weight("attn_q_b", b.n_head * (latent.nope + b.rope_dim), latent.n_lora_q)
        self.weight("attn_kv_a_mqa", latent.n_lora_kv + b.rope_dim, b.n_embd)
        self.weight("attn_k_b", b.n_head, latent.n_lora_kv, latent.nope)
        self.weight("attn_v_b", b.n_head, b.head_dim, latent.n_lora_kv)
        self.weight("attn_output", b.n_embd, b.n_head * b.head_dim)

    def delta(self) -> None:
        b, r = self.b, self.b.recurrent
        assert r is not None
        self.weight("attn_qkv", r.n_channels, b.n_embd)
        self.weight("attn_gate", r.n_inner, b.n_embd)
        self.weight("ssm_conv1d", r.n_channels, r.n_conv, kind="random")
        self.add("ssm_dt.bias", r.n_head, kind="step")
        self.add("ssm_a", r.n_head, kind="decay")
        if b.arch == "qwen3next":
            self.weight("ssm_ba", 2 * r.n_head, b.n_embd)
        else:
            self.weight("ssm_beta", r.n_head, b.n_embd)
            self.weight("ssm_alpha", r.n_head, b.n_embd)
        self.weight("ssm_norm", r.n_inner // r.n_head, kind="ones")
        self.weight("ssm_out", b.n_embd, r.n_inner)

    def mamba2(self) -> None:
        b, r = self.b, self.b.recurrent
        assert r is not None
        self.weight("ssm_in", r.n_inner + r.n_channels + r.n_head, b.n_embd)
        self.weight("ssm_conv1d", r.n_channels, r.n_conv, kind="random")
        self.add("ssm_conv1d.bias", r.n_channels, kind="zeros")
        self.add("ssm_dt.bias", r.n_head, kind="step")
        self.add("ssm_a", r.n_head, 1, kind="decay")
        self.add("ssm_d", r.n_head, 1, kind="ones")
        self.weight("ssm_norm", r.n_group, r.n_inner // r.n_group, kind="ones")
        self.weight("ssm_out", b.n_embd, r.n_inner)

    def conv(self) -> None:
        b, r = self.b, self.b.recurrent
        assert r is not None
        self.weight("shortconv.conv", b.n_embd, r.n_conv, kind="random")
        self.weight("shortconv.in_proj", 3 * b.n_embd, b.n_embd)
        self.weight("shortconv.out_proj", b.n_embd, b.n_embd)

    def feed_forward(self) -> None:
        b, e = self.b, self.b.experts
        if e is None or e.beside_dense or self.il < e.n_dense:
            self.matrices("", b.n_ff)
        if e is None or self.il < e.n_dense:
            return
        self.weight("ffn_gate_inp", e.n, b.n_embd, kind="random")
        if e.beside_dense:
            self.add("ffn_gate_inp.scale", b.n_embd, kind="ones")
        if e.scored:
            self.add("exp_probs_b.bias", e.n, kind="zeros")
        self.matrices("_exps", e.n_ff, e.n)
        if e.n_ff_shared:
            self.matrices("_shexp", e.n_ff_shared)
        if e.shared_gate:
            self.weight("ffn_gate_inp_shexp", b.n_embd, kind="random")
        if b.biases:
            self.add("ffn_gate_inp.bias", e.n, kind="zeros")
            for name, n in {"gate": e.n_ff, "up": e.n_ff, "down": b.n_embd}.items():
                self.add(f"ffn_{name}_exps.bias", e.n, n, kind="zeros")

    def matrices(self, suffix: str, n_ff: int, *experts: int) -> None:
        n_embd = self.b.n_embd
        if not self.b.own_ff:  # Nemotron squares what is positive, and has no gate
            self.weight(f"ffn_gate{suffix}", *experts, n_ff, n_embd)
        self.weight(f"ffn_up{suffix}", *experts, n_ff, n_embd)
        self.weight(f"ffn_down{suffix}", *experts, n_embd, n_ff)


def rope_factors(b: Blueprint) -> list[float]:
    """[head_dim / 2] divisors of RoPE's frequencies.

    Llama 3.1 scales them from 8192 tokens: wavelengths under a quarter of that length stay, those over it are
    stretched by the factor, and between the two it changes gradually. Gemma 4 turns the first ones only.
    """
    if b.rope_share:
        n = b.head_dim // 2
        n_turning = round(b.rope_share * n)
        return [1.0] * n_turning + [1e30] * (n - n_turning)
    n_ctx_old, low, high = 8192, 1.0, 4.0
    factors = []
    for i in range(0, b.head_dim, 2):
        turns = n_ctx_old / (2 * math.pi * b.rope_base ** (i / b.head_dim))
        share = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - share) / b.rope_llama3 + share))
    return factors
