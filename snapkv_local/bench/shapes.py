"""Shapes of real models: what a GGUF file of random weights is made after.

Layers that only predict further tokens (MTP), and towers for images or sound, are left out. The source is
where the numbers can be read: most are logs of llama.cpp, which print a file's metadata.
"""

from __future__ import annotations

from typing import Any

from snapkv_local.bench.blueprint import Blueprint, Experts, Latent, Recurrent, Window

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
    "mixers": "wwwwwa",
    "n_swa": 1024,
    "rope_linear": 8.0,
}
_GEMMA4: dict[str, Any] = {
    "head_dim": 512,
    "n_vocab": 262_144,
    "rope_base": 1_000_000.0,
    "eps": 1e-6,
    "tied": True,
    "qk_norm": True,
    "post_norm": True,
    "mixers": "wwwwwa",
    "rope_share": 0.25,
    "extra": {"final_logit_softcapping": 30.0},
}
# three gated DeltaNets, then full attention; of each head the first 64 elements are rotated
_DELTA: dict[str, Any] = {
    "head_dim": 256,
    "rope_base": 10_000_000.0,
    "rope_dim": 64,
    "eps": 1e-6,
    "qk_norm": True,
    "gated": True,
    "mixers": "rrra",
}
_QWEN35: dict[str, Any] = {
    **_DELTA,
    "n_vocab": 248_320,
    "extra": {"full_attention_interval": 4, "rope.dimension_sections": [11, 11, 10, 0]},
}
# hybrid_override_pattern of its config.json: Mamba, experts, attention
_NEMOTRON3 = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME".translate(
    str.maketrans("ME*", "rfa")
)
_SIGMOID = 2  # LLAMA_EXPERT_GATING_FUNC_TYPE_SIGMOID


def _delta(n_head: int) -> Recurrent:
    """A gated DeltaNet of 16 key heads of 128 elements."""
    return Recurrent("delta", 4, 128 * n_head, 128, 16, n_head)


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
        "qwen3moe", 48, 2048, 768, 32, 4, 128, **_QWEN3, experts=Experts(128, 8, 768)
    ),
    "gemma3-4b": Blueprint("gemma3", 34, 2560, 10240, 8, 4, 256, **_GEMMA3),
    "gemma3-12b": Blueprint("gemma3", 48, 3840, 15360, 16, 8, 256, **_GEMMA3),
    # ggml-org/llama.cpp#23792
    "qwen35-27b": Blueprint("qwen35", 64, 5120, 17408, 24, 4, **_QWEN35, recurrent=_delta(48)),
    # ggml-org/llama.cpp#22785
    "qwen35-9b": Blueprint("qwen35", 32, 4096, 12288, 16, 4, **_QWEN35, recurrent=_delta(32)),
    # ikawrakow/ik_llama.cpp#1432, and the quoted config.json in sgl-project/sglang-jax#1251
    "qwen35-35b-a3b": Blueprint(
        "qwen35moe", 40, 2048, 512, 16, 2, **_QWEN35,
        recurrent=_delta(32), experts=Experts(256, 8, 512, 512, shared_gate=True),
    ),
    # ggml-org/llama.cpp#17578, lmstudio-ai/lmstudio-bug-tracker#1266
    "qwen3next-80b-a3b": Blueprint(
        "qwen3next", 48, 2048, 5120, 16, 2, **_DELTA, n_vocab=151_936,
        recurrent=_delta(32), experts=Experts(512, 10, 512, 512, shared_gate=True),
        extra={"full_attention_interval": 4},
    ),
    # lemonade-sdk/llamacpp-rocm#81, google/gemma.cpp#889
    "gemma4-26b-a4b": Blueprint(
        "gemma4", 30, 2816, 2112, 16, 2, **_GEMMA4, k_is_v=True, n_swa=1024,
        window=Window(256, 8, 10_000.0), experts=Experts(128, 8, 704, beside_dense=True),
    ),
    # ollama/ollama#18123, AmesianX/TurboQuant#10
    "gemma4-e4b": Blueprint(
        "gemma4", 42, 2560, 10240, 8, 2, **_GEMMA4, n_swa=512,
        window=Window(256, 2, 10_000.0), n_shared_kv=18, n_embd_layer=256,
    ),
    # ollama/ollama#12982, ggml-org/llama.cpp#13550
    "granite4-h-small": Blueprint(
        "granitehybrid", 40, 4096, 768, 32, 8, 128, 100_352, 10_000.0, tied=True,
        mixers="rrrrrarrrr", recurrent=Recurrent("mamba2", 4, 8192, 128, 1, 128),
        experts=Experts(72, 10, 768, 1536),
        extra={
            "embedding_scale": 12.0, "residual_scale": 0.22, "logit_scale": 16.0,
            "attention.scale": 0.0078125, "rope.scaling.finetuned": False,
        },
    ),
    # lmstudio-ai/lmstudio-bug-tracker#1365, ggml-org/llama.cpp#20570
    "nemotron3-nano": Blueprint(
        "nemotron_h_moe", 52, 2688, 1856, 32, 2, 128, 131_072, 10_000.0, rope_dim=84,
        mixers=_NEMOTRON3, own_ff=True,
        recurrent=Recurrent("mamba2", 4, 4096, 128, 8, 64),
        experts=Experts(128, 6, 1856, 3712, scored=True),
        extra={
            "attention.layer_norm_epsilon": 1e-5, "expert_shared_count": 1,
            "expert_weights_norm": True, "expert_weights_scale": 2.5, "rope.scaling.finetuned": False,
        },
    ),
    # ggml-org/llama.cpp#19848, NVIDIA/TensorRT-Model-Connect#1068, huggingface/candle#3910
    "lfm2-8b": Blueprint(
        "lfm2moe", 24, 2048, 7168, 32, 8, 64, 65_536, 1_000_000.0, tied=True, qk_norm=True,
        mixers="rrarrrarrrarrrarrrarrarr", recurrent=Recurrent("conv", 3),
        experts=Experts(32, 4, 1792, n_dense=2, scored=True),
        extra={"expert_gating_func": _SIGMOID},
    ),
    # ikawrakow/ik_llama.cpp#1173, lmstudio-ai/lmstudio-bug-tracker#1495
    "glm47-flash": Blueprint(
        "deepseek2", 47, 2048, 10240, 20, 1, 256, 154_880, 1_000_000.0, rope_dim=64,
        latent=Latent(768, 512, 192), experts=Experts(64, 4, 1536, 1536, n_dense=1, scored=True),
        extra={
            "expert_shared_count": 1, "expert_weights_norm": True, "expert_weights_scale": 1.8,
            "expert_gating_func": _SIGMOID,
        },
    ),
    # ggml-org/llama.cpp#15789; its weights have 4.25 bits
    "gpt-oss-20b": Blueprint(
        "gpt-oss", 24, 2880, 2880, 64, 8, 64, 201_088, 150_000.0, mixers="wa", n_swa=128,
        biases=True, sinks=True, experts=Experts(32, 4, 2880),
        extra={
            "rope.scaling.type": "yarn", "rope.scaling.factor": 32.0,
            "rope.scaling.original_context_length": 4096,
        },
    ),
    # of no real model: for tests. GPUs have no flash attention for heads under 64 elements
    "tiny": Blueprint("llama", 4, 256, 512, 4, 2, 64, 1024, 10_000.0),
}  # fmt: skip
