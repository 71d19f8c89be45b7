"""A shape as GGUF metadata, under the keys that llama.cpp reads (src/models/ARCH.cpp)."""

from __future__ import annotations

from typing import Any

from gguf import GGUFWriter

from snapkv_local.bench.blueprint import Blueprint

# no measurement is to be longer than what the file claims to be trained for
N_CTX = 1 << 20


def add_shape(writer: GGUFWriter, b: Blueprint) -> None:
    """Write all of it."""
    for key, value in shape_metadata(b).items():
        _add(writer, f"{b.arch}.{key}", value)


def shape_metadata(b: Blueprint) -> dict[str, Any]:
    """Values by the key after the architecture's name."""
    ils = range(b.n_layer)
    found: dict[str, Any] = {
        "context_length": N_CTX,
        "block_count": b.n_layer,
        "embedding_length": b.n_embd,
        "feed_forward_length": b.n_ff,
        "attention.head_count": b.n_head,
        "attention.head_count_kv": b.n_head_kv,
        "attention.key_length": b.head_dim,
        "attention.value_length": b.head_dim,
        "attention.layer_norm_rms_epsilon": b.eps,
        "rope.dimension_count": b.rope_dim or b.head_dim,
        "rope.freq_base": b.rope_base,
    }
    if b.own_ff:
        found["feed_forward_length"] = [b.n_ff if b.mixer(il) == "f" else 0 for il in ils]
    # Qwen's recurrent layers are those that are no multiple of full_attention_interval
    if b.window or (b.recurrent and b.recurrent.kind != "delta"):
        found["attention.head_count_kv"] = [b.kv_heads(il) for il in ils]
    if b.rope_linear:
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": b.rope_linear}
    if b.n_swa:
        found["attention.sliding_window"] = b.n_swa
    if b.window:
        found |= {
            "attention.sliding_window_pattern": [b.mixer(il) == "w" for il in ils],
            "attention.key_length_swa": b.window.head_dim,
            "attention.value_length_swa": b.window.head_dim,
            "rope.dimension_count_swa": b.window.head_dim,
            "rope.freq_base_swa": b.window.rope_base,
            "attention.shared_kv_layers": b.n_shared_kv,
            "embedding_length_per_layer_input": b.n_embd_layer,
        }
    return found | _experts(b) | _recurrent(b) | _latent(b) | dict(b.extra)


def _experts(b: Blueprint) -> dict[str, Any]:
    if b.experts is None:
        return {}
    found = {
        "expert_count": b.experts.n,
        "expert_used_count": b.experts.n_used,
        "expert_feed_forward_length": b.experts.n_ff,
    }
    if b.experts.n_ff_shared:
        found["expert_shared_feed_forward_length"] = b.experts.n_ff_shared
    if b.experts.n_dense:
        found["leading_dense_block_count"] = b.experts.n_dense
    return found


def _recurrent(b: Blueprint) -> dict[str, Any]:
    r = b.recurrent
    if r is None:
        return {}
    if r.kind == "conv":
        return {"shortconv.l_cache": r.n_conv}
    return {
        "ssm.conv_kernel": r.n_conv,
        "ssm.inner_size": r.n_inner,
        "ssm.state_size": r.n_state,
        "ssm.group_count": r.n_group,
        "ssm.time_step_rank": r.n_head,
    }


def _latent(b: Blueprint) -> dict[str, Any]:
    if b.latent is None:
        return {}
    return {
        "attention.q_lora_rank": b.latent.n_lora_q,
        "attention.kv_lora_rank": b.latent.n_lora_kv,
        "attention.key_length": b.latent.n_lora_kv + b.rope_dim,
        "attention.value_length": b.latent.n_lora_kv,
        "attention.key_length_mla": b.latent.nope + b.rope_dim,
        "attention.value_length_mla": b.head_dim,
    }


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)
