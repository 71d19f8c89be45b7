"""What each layer of a model keeps of a token, from the metadata of a GGUF file (src/models/ARCH.cpp)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gguf.constants import Keys

from snapkv_local.models.gguf_shape import ModelShape

# Of each n layers, those that have a sliding window: all but the last, or (dense first) all but the
# first. Where the file has no pattern, llama.cpp takes these.
_PERIODS = {
    "afmoe": 4, "cohere2": 4, "exaone-moe": 4, "exaone4": 4, "gemma2": 2, "gemma3": 6, "gemma3n": 5,
    "gpt-oss": 2, "llama4": 4, "mellum": 4, "muse-glimmer": 4, "olmo2": 4, "plamo3": 8,
}  # fmt: skip
_PERIODS_DENSE_FIRST = {"cohere2moe": 4, "laguna": 4, "smallthinker": 4}
_N_SWA = {"gemma2": 4096, "exaone4": 4096, "llama4": 8192, "smallthinker": 4096}

# recurrent layers are all but every fourth, or as full_attention_interval says
_INTERVAL = ("qwen35", "qwen35moe", "qwen3next", "minimax-01")
# layers after these read an earlier one's rows
_N_OWN = {"gemma3n": 20}
_KDA = "{arch}.kda.head_dim"  # elements of a head of Kimi's delta attention
# their queries' matrix has a gate beside each head
_GATED = ("qwen35", "qwen35moe", "qwen3next")
# a layer is recurrent, or attends, or has feed-forward matrices
_ONE_EACH = ("nemotron_h", "nemotron_h_moe")
_FLOAT = 4  # bytes of an element of a state


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        n_head: query heads; 0 without attention.
        n_voters: query heads that vote for its rows: its own, and those of layers that read them.
        n_head_kv: KV heads; 0 where the layer has no KV cache of its own.
        head_k: elements of a key head.
        head_v: elements of a value head that are kept; 0 where V is a part of K's row (MLA).
        n_result: elements of attention's result, all heads.
        n_projected: elements of a token that the matrix of queries gives.
        n_placed: elements of a token from the queries to attention's result, if that fits into no place
            which was freed before; see compute.py.
        is_swa: it has a sliding window.
        bytes_state: state of a recurrent layer, of one sequence.
        n_mix: elements of a token that are alive at the largest moment of a recurrent layer, but for the
            hidden state; see compute.py.
        n_ff: elements between the feed-forward matrices; of a mixture of experts all that a token goes
            through, together. 0 without them.
        n_expert_used: experts that a token goes through.
        is_gated: the feed-forward layer has a gate beside its two matrices.
        has_dense: a dense feed-forward layer stands beside its experts.
    """

    n_head: int
    n_voters: int
    n_head_kv: int
    head_k: int
    head_v: int
    n_result: int
    n_projected: int
    n_placed: int
    is_swa: bool
    bytes_state: int
    n_mix: int
    n_ff: int
    n_expert_used: int
    is_gated: bool
    has_dense: bool

    @property
    def n_q(self) -> int:
        """Elements of all query heads."""
        return self.n_head * self.head_k

    @property
    def n_voting(self) -> int:
        """Elements of all query heads that vote."""
        return self.n_voters * self.head_k

    @property
    def n_row(self) -> int:
        """Elements of a token's K and V, all heads."""
        return self.n_head_kv * (self.head_k + self.head_v)

    @property
    def is_recurrent(self) -> bool:
        """Whether it has a state."""
        return self.bytes_state > 0

    @property
    def is_cached(self) -> bool:
        """Whether its rows are scored and evicted: full attention with a KV cache of its own."""
        return self.n_head_kv > 0 and not self.is_swa


def layers_of(metadata: dict[str, Any], shape: ModelShape) -> tuple[Layer, ...]:
    """Of a model, first to last."""
    arch, n_layer = shape.arch, shape.n_layer

    def get(key: str, default: Any = 0) -> Any:
        return metadata.get(key.format(arch=arch), default)

    def by_layer(key: str) -> list[int]:
        value = get(key)
        return [int(v) for v in value[:n_layer]] if isinstance(value, list) else [value] * n_layer

    n_ff, n_ff_expert = (
        by_layer(Keys.LLM.FEED_FORWARD_LENGTH),
        by_layer(Keys.LLM.EXPERT_FEED_FORWARD_LENGTH),
    )
    used = by_layer(Keys.LLM.EXPERT_USED_COUNT)
    is_swa = _is_swa(metadata, shape)
    is_recurrent = _is_recurrent(get, shape, n_ff)
    n_state, n_mix = _state(get, shape)
    is_latent = get(Keys.Attention.KEY_LENGTH_MLA) > 0 and get(Keys.Attention.VALUE_LENGTH_MLA) > 0
    # of MLA: a head's queries before they meet K's latent, and its result
    n_latent = get(Keys.Attention.KEY_LENGTH_MLA) + get(Keys.Attention.KV_LORA_RANK)
    n_own = _N_OWN.get(arch, n_layer - get(Keys.Attention.SHARED_KV_LAYERS))
    # a layer without rows of its own reads the last ones of its kind (create_memory() of llama-model.cpp)
    source = [il if il < n_own else n_own - (2 if is_swa[il] else 1) for il in range(n_layer)]
    found = []
    for il in range(n_layer):
        swa = is_swa[il]
        attends = arch == "falcon-h1" or not (is_recurrent[il] or (arch in _ONE_EACH and n_ff[il]))
        head_k = get(Keys.Attention.KEY_LENGTH_SWA, shape.head_k) if swa else shape.head_k
        head_v = get(Keys.Attention.VALUE_LENGTH_SWA, shape.head_v) if swa else shape.head_v
        n_head_kv = shape.n_head_kv[il] if attends else 0
        experts = used[il] if n_ff_expert[il] else 0
        n_head = shape.n_head[il] if n_head_kv else 0
        # queries and results; of gated attention queries with gates, and normed, too
        n_q = n_head * head_k
        n_projected, n_placed = (2 * n_q, 5 * n_q) if arch in _GATED else (n_q, 2 * n_q)
        if is_latent and n_head:
            n_placed += n_head * n_latent + get(Keys.Attention.Q_LORA_RANK)
        found.append(
            Layer(
                n_head=n_head,
                n_voters=sum(shape.n_head[jl] for jl in range(n_layer) if source[jl] == il),
                n_head_kv=n_head_kv if il < n_own else 0,
                head_k=head_k,
                head_v=0 if is_latent else head_v,
                n_result=n_head * (get(Keys.Attention.VALUE_LENGTH_MLA) or head_v),
                n_projected=n_projected,
                n_placed=n_placed,
                is_swa=swa,
                bytes_state=n_state * _FLOAT if is_recurrent[il] else 0,
                n_mix=n_mix if is_recurrent[il] else 0,
                # Mixtral has one length for all
                n_ff=max(
                    n_ff[il] * max(1, used[il] if not any(n_ff_expert) else 1),
                    n_ff_expert[il] * experts,
                ),
                n_expert_used=used[il],
                is_gated=arch not in _ONE_EACH,
                has_dense=arch == "gemma4" and used[il] > 0,
            )
        )
    return tuple(found)


def hidden_size(shape: ModelShape) -> int:
    """Elements of a token between layers (llama_snapkv_hidden_size() in csrc/graph/cut.cpp)."""
    return shape.n_embd * (4 if shape.arch == "gemma3n" else 1)


def window(shape: ModelShape) -> int:
    """The sliding window in tokens; 0 for none."""
    return shape.n_swa or _N_SWA.get(shape.arch, 0)


def _is_swa(metadata: dict[str, Any], shape: ModelShape) -> tuple[bool, ...]:
    arch, n_layer = shape.arch, shape.n_layer
    if window(shape) == 0 or (arch == "exaone4" and n_layer != 64):
        return (False,) * n_layer
    pattern = metadata.get(Keys.Attention.SLIDING_WINDOW_PATTERN.format(arch=arch))
    if isinstance(pattern, list):
        return tuple(bool(value) for value in pattern[:n_layer])
    dense_first = arch in _PERIODS_DENSE_FIRST
    period = pattern or _PERIODS.get(arch) or _PERIODS_DENSE_FIRST.get(arch)
    if period is None:
        return (False,) * n_layer  # llama.cpp reads the window of these and keeps all positions
    dense = 0 if dense_first else period - 1
    return tuple(il % period != dense for il in range(n_layer))


def _is_recurrent(get: Callable[..., Any], shape: ModelShape, n_ff: list[int]) -> list[bool]:
    """llama_hparams::is_recr()."""
    if shape.arch == "falcon-h1":
        return [True] * shape.n_layer
    if shape.arch in _INTERVAL:
        given = get("{arch}.attention.recurrent_layers", None)
        if given is not None:
            return [bool(value) for value in given[: shape.n_layer]]
        interval = get(Keys.LLM.FULL_ATTENTION_INTERVAL, 4)
        return [(il + 1) % interval != 0 for il in range(shape.n_layer)]
    if not any(get(key) for key in (Keys.SSM.CONV_KERNEL, Keys.ShortConv.L_CACHE, _KDA)):
        return [False] * shape.n_layer
    return [
        heads == 0 and not (shape.arch in _ONE_EACH and n_ff[il])
        for il, heads in enumerate(shape.n_head_kv)
    ]


def _state(get: Callable[..., Any], shape: ModelShape) -> tuple[int, int]:
    """Elements of a state, llama_hparams::n_embd_r() and n_embd_s(); and n_mix."""
    if shape.arch == "minimax-01":
        return shape.head_k * shape.head_k * shape.n_head[0], 4 * shape.head_k * shape.n_head[0]
    if get(_KDA):
        n_inner = get(_KDA) * shape.n_head[0]
        n_conv = get(Keys.SSM.CONV_KERNEL, 4) - 1
        return 3 * n_conv * n_inner + get(_KDA) * n_inner, 9 * n_inner
    n_cache = get(Keys.ShortConv.L_CACHE)
    if n_cache:
        return shape.n_embd * (n_cache - 1), 4 * shape.n_embd
    n_inner, n_state = get(Keys.SSM.INNER_SIZE), get(Keys.SSM.STATE_SIZE)
    n_channels = n_inner + 2 * get(Keys.SSM.GROUP_COUNT) * n_state
    n_mix = 3 * n_channels + (0 if shape.arch in _INTERVAL else 3 * n_inner)
    return max(get(Keys.SSM.CONV_KERNEL) - 1, 0) * n_channels + n_inner * n_state, n_mix
