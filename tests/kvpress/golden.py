"""Writes tests/unit/kvpress-kept.npz: which positions kvpress keeps of prompts of a tiny random model.

    build/kvpress-venv/bin/python tests/kvpress/golden.py

Runs in the environment of kvpress_side.py. tests/unit/test_kvpress_kept.py compares our reference and the
policy snapkv-paper with it. For each case, NAME being window size, kernel size and n_keep joined by "-":
    q-NAME     float32 [n_layer, n_head, window, head_dim], after RoPE
    k-NAME     float32 [n_layer, n_head_kv, n_prompt, head_dim], after RoPE
    kept-NAME  int16   [n_layer, n_head_kv, n_keep], before the window
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from kvpress_side import RecordingPress
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

OUT = Path(__file__).resolve().parents[1] / "unit" / "kvpress-kept.npz"
CASES = [(8, 5, 24, 120), (16, 7, 30, 150), (4, 1, 11, 90), (12, 3, 50, 131)]
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


def recorder(seen: list[tuple[np.ndarray, np.ndarray]], window: int) -> Callable:
    """Turns q and k, and notes the window's q and all of k, for each layer."""
    rotate = modeling_llama.apply_rotary_pos_emb

    def rotate_and_record(q, k, *rest, **named):
        q, k = rotate(q, k, *rest, **named)
        seen.append((q[0, :, -window:].numpy(), k[0].numpy()))
        return q, k

    return rotate_and_record


def main() -> None:
    torch.manual_seed(1)
    # weights large enough for attention that differs from position to position
    config = LlamaConfig(**SHAPE, **HEADS, initializer_range=0.6, attn_implementation="sdpa")
    model = LlamaForCausalLM(config).float().eval()
    found = {}
    for window, kernel, n_keep, n_prompt in CASES:
        press = RecordingPress(
            compression_ratio=1 - (n_keep + window + 0.5) / n_prompt,
            window_size=window,
            kernel_size=kernel,
        )
        seen: list[tuple[np.ndarray, np.ndarray]] = []
        tokens = torch.randint(0, SHAPE["vocab_size"], (1, n_prompt))
        recording = patch.object(modeling_llama, "apply_rotary_pos_emb", recorder(seen, window))
        with torch.inference_mode(), recording, press(model):
            model(tokens)
        kept = np.sort(np.stack(press.kept), axis=-1)
        assert (kept[..., n_keep:] == np.arange(n_prompt - window, n_prompt)).all()
        name = f"{window}-{kernel}-{n_keep}"
        found[f"q-{name}"] = np.stack([q for q, _ in seen])
        found[f"k-{name}"] = np.stack([k for _, k in seen])
        found[f"kept-{name}"] = kept[..., :n_keep].astype(np.int16)
    np.savez_compressed(OUT, **found)


if __name__ == "__main__":
    main()
