"""The kvpress half of compare.py: which prompt positions NVIDIA kvpress's SnapKVPress keeps.

Runs in an environment of its own (requirements.txt). Loads the GGUF through transformers,
dequantized to float32, prefills the token ids it is given and writes an .npz:
    kept            int32   [n_layer, n_head_kv, n_keep]  what the press keeps before the window
    float64<name>   int32   the same from snapkv_float64 and the model's own Q and K, each variant
    logits          float32 [n_vocab], of the prompt's last token
    versions        JSON
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import transformers
from kvpress import SnapKVPress
from snapkv_float64 import VARIANTS, kept_positions
from transformers.models.llama import modeling_llama


class RecordingPress(SnapKVPress):
    """SnapKVPress that notes what it kept.

    It prunes a "value" tensor that holds each row's position, so the positions come out of
    kvpress's own top-k and gather. The cache stays whole: nothing reads it after the prompt.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.kept: list[np.ndarray] = []  # for each layer [n_head_kv, budget]

    def compress(self, module, hidden_states, keys, values, attentions, kwargs):
        positions = torch.arange(keys.shape[2], dtype=torch.float32)  # float32 is exact up to 2**24
        positions = positions[:, None].expand_as(values)
        _, kept = super().compress(module, hidden_states, keys, positions, attentions, kwargs)
        self.kept.append(kept[0, :, :, 0].numpy().astype(np.int32))
        return keys, values


def load_model(path: Path) -> modeling_llama.LlamaForCausalLM:
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="sdpa"
    )
    if not isinstance(model, modeling_llama.LlamaForCausalLM):
        raise SystemExit(f"{path.name}: {type(model).__name__}, but Q and K are read in Llama's")
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="GGUF file, llama architecture")
    parser.add_argument("--tokens", type=Path, required=True, help=".npy of token ids [n_prompt]")
    parser.add_argument("--out", type=Path, required=True, help=".npz to write")
    parser.add_argument("--budget", type=int, required=True, help="rows per KV head")
    parser.add_argument("--window-size", type=int, required=True)
    parser.add_argument("--kernel-size", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    tokens = np.load(args.tokens)
    n_prompt, n_keep = len(tokens), args.budget - args.window_size
    model = load_model(args.model.resolve())

    # kvpress keeps int(n_prompt * (1 - ratio)) rows; half a row of slack keeps rounding out of it
    press = RecordingPress(
        compression_ratio=1 - (args.budget + 0.5) / n_prompt,
        window_size=args.window_size,
        kernel_size=args.kernel_size,
    )
    rotate = modeling_llama.apply_rotary_pos_emb
    layers_qk: list[tuple[np.ndarray, np.ndarray]] = []

    def rotate_and_record(q, k, *rest, **named):
        q, k = rotate(q, k, *rest, **named)
        layers_qk.append((q[0, :, -args.window_size :].numpy(), k[0].numpy()))
        return q, k

    recording = patch.object(modeling_llama, "apply_rotary_pos_emb", rotate_and_record)
    with torch.inference_mode(), recording, press(model):
        out = model(torch.from_numpy(tokens.astype(np.int64))[None], logits_to_keep=1)

    kept = np.sort(np.stack(press.kept), axis=-1)
    if not (kept[..., n_keep:] == np.arange(n_prompt - args.window_size, n_prompt)).all():
        raise SystemExit("kvpress did not keep the whole window")
    float64 = {
        f"float64{name}": np.stack(
            [
                kept_positions(
                    q, k, **{"n_keep": n_keep, "kernel_size": args.kernel_size, **switches}
                )
                for q, k in layers_qk
            ]
        )
        for name, switches in VARIANTS.items()
    }
    packages = ("kvpress", "torch", "transformers", "gguf", "numpy")
    np.savez(
        args.out,
        kept=kept[..., :n_keep],
        logits=out.logits[0, -1].float().numpy(),
        versions=json.dumps({name: version(name) for name in packages}),
        **float64,
    )


if __name__ == "__main__":
    main()
