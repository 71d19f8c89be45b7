"""Models that the engine refuses (csrc/prefill/support.cpp), known from the metadata of a GGUF file.

tests/native/test_plan.py compares with the engine, model by model.
"""

from __future__ import annotations

from typing import Any

from gguf.constants import Keys

_NO_CACHE = "has no KV cache"
_OWN_CACHE = (
    "has a KV cache of a kind of its own (sparse attention index, compressed or mixed memory)"
)
_ALIBI = "has ALiBi position biases, which depend on positions that eviction changes"

_ARCHS = {
    **dict.fromkeys(("dream", "llada", "llada-moe", "rnd1"), _NO_CACHE),
    **dict.fromkeys(("mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"), _NO_CACHE),
    **dict.fromkeys(
        (
            "deepseek32", "deepseek4", "dots3note", "glm-dsa", "glm5-next", "hy_v4", "minimax-m3",
            "qwen4exp",
        ),
        _OWN_CACHE,
    ),
    **dict.fromkeys(("bloom", "refact"), _ALIBI),
    "grok": "has no flash attention in llama.cpp",
    "hrm_text": "has layers that need the attention of later ones",
}  # fmt: skip


def reason(metadata: dict[str, Any], arch: str) -> str | None:
    """Why the engine refuses the model; None if it does not."""

    def get(key: str) -> Any:
        return metadata.get(key.format(arch=arch), 0)

    if arch in _ARCHS:
        return _ARCHS[arch]
    is_baichuan_13b = arch == "baichuan" and get(Keys.LLM.BLOCK_COUNT) == 40
    reads_bias = arch in ("jais", "mpt")  # others ignore the key
    if is_baichuan_13b or (reads_bias and get(Keys.Attention.MAX_ALIBI_BIAS) > 0):
        return _ALIBI
    return None
