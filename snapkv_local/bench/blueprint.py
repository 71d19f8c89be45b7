"""What a model's tensors, its metadata and its graph follow from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

N_CONTROL = 2  # the last tokens of a made-up vocabulary: begin and end of text


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in the place of a feed-forward layer.

    Attributes:
        n: experts.
        n_used: experts that a token goes through.
        n_ff: elements between the matrices of one expert.
        n_ff_shared: of the expert that all tokens go through, 0 for none.
        n_dense: layers before the first mixture, which are dense.
        scored: the router adds a bias when it chooses.
        shared_gate: the shared expert's result is weighted, as Qwen's are.
        beside_dense: each layer has a dense feed-forward layer, too, as Gemma 4's have.
    """

    n: int
    n_used: int
    n_ff: int
    n_ff_shared: int = 0
    n_dense: int = 0
    scored: bool = False
    shared_gate: bool = False
    beside_dense: bool = False


@dataclass(frozen=True)
class Recurrent:
    """Layers that keep a state in the place of rows.

    Attributes:
        kind: a gated DeltaNet (arXiv:2412.06464), Mamba 2 (arXiv:2405.21060), or the gated short
            convolution of LFM2.
        n_conv: tokens that the convolution sees.
        n_inner: elements of all heads.
        n_state: rows of a head's state; of a DeltaNet the elements of a head.
        n_group: heads of queries and keys of a DeltaNet, groups of B and C of Mamba.
        n_head: heads.
    """

    kind: Literal["delta", "mamba2", "conv"]
    n_conv: int
    n_inner: int = 0
    n_state: int = 0
    n_group: int = 0
    n_head: int = 0

    @property
    def n_channels(self) -> int:
        """Channels of the convolution of a DeltaNet or Mamba."""
        return self.n_inner + 2 * self.n_group * self.n_state


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention, MLA (arXiv:2405.04434): K and V of all heads from one row.

    Attributes:
        n_lora_q: elements that queries come from.
        n_lora_kv: elements of the row that K and V come from.
        nope: elements of a head that are not rotated; rope_dim more of them are.
    """

    n_lora_q: int
    n_lora_kv: int
    nope: int


@dataclass(frozen=True)
class Window:
    """Layers that see the last tokens only, where they differ from the others.

    Attributes:
        head_dim: elements of a head.
        n_head_kv: KV heads.
        rope_base: base of RoPE's frequencies.
    """

    head_dim: int
    n_head_kv: int
    rope_base: float


@dataclass(frozen=True)
class Blueprint:
    """The numbers of a model that its tensors and its graph follow from.

    Attributes:
        arch: llama.cpp's name of the architecture.
        n_layer: layers.
        n_embd: elements of the hidden state.
        n_ff: elements between the matrices of a dense feed-forward layer.
        n_head: query heads.
        n_head_kv: KV heads.
        head_dim: elements of a head.
        n_vocab: tokens of the vocabulary.
        rope_base: base of RoPE's frequencies.
        eps: of the RMS norms.
        tied: the output matrix is the token embedding.
        qk_norm: queries and keys are normalized.
        post_norm: attention and feed-forward results are normalized, too.
        mixers: what the layers mix tokens with, repeated to their number: "a" full attention, "w" a
            sliding window, "r" a recurrent layer, "f" nothing: a feed-forward layer only.
        own_ff: a layer is a mixer or a feed-forward layer, not both, as Nemotron's are.
        gated: attention's result is gated by what comes beside the queries.
        k_is_v: layers of full attention have no matrix for V, but K's.
        biases: attention has biases.
        sinks: attention has a sink for each query head.
        experts: None for dense models.
        recurrent: of layers "r".
        latent: of layers "a" with MLA.
        n_swa: sliding window, in tokens; 0 for none.
        window: of layers "w", where their heads differ.
        n_shared_kv: last layers, which read an earlier layer's rows; files have their matrices for K and V
            all the same.
        n_embd_layer: elements of the embedding that each layer adds, 0 for none.
        rope_dim: elements of a head that are rotated, 0 for all.
        rope_llama3: factor of Llama 3's frequency scaling, 0 for none.
        rope_linear: factor of linear scaling, 0 for none.
        rope_share: share of a head's frequencies that turn, where a file lists them.
        extra: more metadata, by the key after the architecture's name.
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
    mixers: str = "a"
    own_ff: bool = False
    gated: bool = False
    k_is_v: bool = False
    biases: bool = False
    sinks: bool = False
    experts: Experts | None = None
    recurrent: Recurrent | None = None
    latent: Latent | None = None
    n_swa: int = 0
    window: Window | None = None
    n_shared_kv: int = 0
    n_embd_layer: int = 0
    rope_dim: int = 0
    rope_llama3: float = 0.0
    rope_linear: float = 0.0
    rope_share: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)

    def mixer(self, il: int) -> str:
        """Of a layer."""
        return self.mixers[il % len(self.mixers)]

    def kv_heads(self, il: int) -> int:
        """KV heads of a layer, 0 without attention."""
        mixer = self.mixer(il)
        if mixer == "w" and self.window is not None:
            return self.window.n_head_kv
        return self.n_head_kv if mixer in "aw" else 0

    def head_size(self, il: int) -> int:
        """Elements of a layer's heads."""
        return self.window.head_dim if self.window and self.mixer(il) == "w" else self.head_dim
