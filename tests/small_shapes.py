"""The shapes of `bench make-model`, made small: the layers' kinds and order stay, the numbers do not."""

from dataclasses import replace

from snapkv_local.bench.blueprint import Blueprint, Latent
from snapkv_local.bench.shapes import SHAPES

# as many layers as have each kind, full attention at least twice
_LAYERS = {"gemma3-4b": 12, "gemma3-12b": 12, "gemma4-26b-a4b": 12, "gemma4-e4b": 18}
_LAYERS |= {"granite4-h-small": 16, "nemotron3-nano": 14, "lfm2-8b": 7, "tiny": 4}
_HYBRID_LAYERS = 9


def small(name: str, **changes: object) -> Blueprint:
    """A shape of at most 18 layers, 256 elements and 512 tokens, with changes."""
    b = SHAPES[name]
    experts, recurrent = b.experts, b.recurrent
    n_ff = 64 if experts and not experts.n_dense and not experts.beside_dense else 256
    if experts:
        shared = min(experts.n_ff_shared, 64)
        experts = replace(experts, n=4, n_used=2, n_ff=64, n_ff_shared=shared)
    if recurrent and recurrent.kind != "conv":
        n_group = min(recurrent.n_group, 2)
        recurrent = replace(recurrent, n_inner=512, n_state=64, n_group=n_group, n_head=8)
    made = replace(
        b,
        n_layer=_LAYERS.get(name, _HYBRID_LAYERS if recurrent else 4),
        n_vocab=512,
        n_embd=256,
        n_ff=n_ff,
        n_head=4,
        n_head_kv=min(b.n_head_kv, 2),
        head_dim=64,
        rope_dim=min(b.rope_dim, 64),
        experts=experts,
        recurrent=recurrent,
        latent=b.latent and replace(b.latent, n_lora_q=64, n_lora_kv=64, nope=64),
        n_swa=min(b.n_swa, 64),
        window=b.window and replace(b.window, head_dim=32, n_head_kv=min(b.window.n_head_kv, 4)),
        n_shared_kv=min(b.n_shared_kv, 6),
        n_embd_layer=min(b.n_embd_layer, 32),
    )
    return replace(made, **changes)


def quarter(name: str) -> Blueprint:
    """A shape with a quarter of all widths, and some layers of each kind: graphs stay like the real model's.

    With chunks of a quarter of the tokens, so do the shares of a compute buffer.
    """
    b = SHAPES[name]
    experts, recurrent, window, latent = b.experts, b.recurrent, b.window, b.latent
    if latent:
        latent = Latent(latent.n_lora_q // 4, latent.n_lora_kv // 4, latent.nope // 4)
    if experts:
        n_dense = min(experts.n_dense, 1)
        shared = experts.n_ff_shared // 4
        experts = replace(
            experts, n=16, n_ff=experts.n_ff // 4, n_ff_shared=shared, n_dense=n_dense
        )
    if recurrent and recurrent.kind != "conv":
        inner, state = recurrent.n_inner // 4, recurrent.n_state // 4
        recurrent = replace(recurrent, n_inner=inner, n_state=state)
    extra = dict(b.extra)
    if "rope.dimension_sections" in extra:
        extra["rope.dimension_sections"] = [3, 3, 2, 0]
    return replace(
        b,
        n_layer=_LAYERS.get(name, 8 if recurrent else 4),
        n_vocab=512,
        n_embd=b.n_embd // 4,
        n_ff=b.n_ff // 4,
        head_dim=b.head_dim // 4,
        rope_dim=b.rope_dim // 8 * 2,
        n_swa=min(b.n_swa, 64),
        window=window and replace(window, head_dim=window.head_dim // 4),
        experts=experts,
        recurrent=recurrent,
        latent=latent,
        n_shared_kv=min(b.n_shared_kv, 6),
        n_embd_layer=b.n_embd_layer // 4,
        extra=extra,
    )
