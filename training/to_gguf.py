"""A checkpoint as GGUF, and back: to_gguf.py DATA CHECKPOINT OUT.gguf [f32|q8_0]

to_gguf.py --back MODEL.gguf CHECKPOINT DATA makes a checkpoint and DATA/tokenizer.json to train on with. Q8_0
weights have lost some precision, which training makes good in a few steps.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import gguf
import numpy as np
import torch

from model import Needle, Shape, load, save

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
N_CONTEXT = 524_288
# a rotary pair whose rate is divided by this stands still
STILL = 1e30
# names of GGUF and of Needle
LAYER = {
    "attn_norm": "gain1", "attn_q": "wq", "attn_k": "wk", "attn_v": "wv", "attn_output": "wo",
    "ffn_norm": "gain2", "ffn_gate": "w1", "ffn_up": "w3", "ffn_down": "w2",
}  # fmt: skip
TURNED = ("wq", "wk")


def interleaved(w: np.ndarray, head: int) -> np.ndarray:
    """Rows of [heads * head, width] as llama.cpp turns them: the two of a rotary pair side by side."""
    n, width = w.shape
    return w.reshape(n // head, 2, head // 2, width).swapaxes(1, 2).reshape(n, width)


def halved(w: np.ndarray, head: int) -> np.ndarray:
    """What interleaved() was given."""
    n, width = w.shape
    return w.reshape(n // head, head // 2, 2, width).swapaxes(1, 2).reshape(n, width)


def add_header(w: gguf.GGUFWriter, shape: Shape, kind: str) -> None:
    """Name and hyperparameters."""
    w.add_name("needle")
    w.add_description("Trained by snapkv-local for one thing: to find facts in long prompts.")
    w.add_license("MIT")
    w.add_context_length(N_CONTEXT)
    w.add_embedding_length(shape.width)
    w.add_block_count(shape.n_layers)
    w.add_feed_forward_length(shape.inner)
    w.add_head_count(shape.n_heads)
    w.add_head_count_kv(shape.n_kv_heads)
    w.add_key_length(shape.head)
    w.add_value_length(shape.head)
    w.add_layer_norm_rms_eps(shape.eps)
    w.add_rope_dimension_count(shape.head)
    w.add_rope_freq_base(shape.rope_base)
    w.add_vocab_size(shape.vocabulary)
    w.add_file_type(
        gguf.LlamaFileType.MOSTLY_Q8_0 if kind == "q8_0" else gguf.LlamaFileType.ALL_F32
    )
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)


def add_tokenizer(w: gguf.GGUFWriter, file: Path) -> None:
    """Vocabulary, merges and chat template."""
    tokenizer = json.loads(file.read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    special = {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
    by_id = {i: name for name, i in (vocabulary | special).items()}
    names = [by_id[i] for i in range(len(by_id))]
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("llama-bpe")
    w.add_token_list(names)
    w.add_token_types(
        [gguf.TokenType.CONTROL if n in special else gguf.TokenType.NORMAL for n in names]
    )
    w.add_token_merges(
        [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    )
    w.add_bos_token_id(special["<|endoftext|>"])
    w.add_eos_token_id(special["<|im_end|>"])
    w.add_eot_token_id(special["<|im_end|>"])
    w.add_pad_token_id(special["<|endoftext|>"])
    w.add_add_bos_token(False)
    w.add_chat_template(TEMPLATE)


def write(model: Needle, tokenizer: Path, out: Path, kind: str) -> None:
    """A GGUF file, its matrices in f32 or q8_0."""
    s = model.shape
    state = {k: v.float().numpy() for k, v in model.state_dict().items()}
    w = gguf.GGUFWriter(str(out), "llama")
    add_header(w, s, kind)
    add_tokenizer(w, tokenizer)

    def add(name: str, tensor: np.ndarray) -> None:
        tensor = np.ascontiguousarray(tensor, np.float32)
        if kind == "q8_0" and tensor.ndim == 2:
            q8 = gguf.GGMLQuantizationType.Q8_0
            w.add_tensor(name, gguf.quants.quantize(tensor, q8), raw_dtype=q8)
        else:
            w.add_tensor(name, tensor)

    add("token_embd.weight", state["embedding"])
    add("output_norm.weight", state["gain"])
    still = np.ones(s.head // 2, np.float32)
    still[s.n_turning :] = STILL
    add("rope_freqs.weight", still)
    for i in range(s.n_layers):
        for name, key in LAYER.items():
            tensor = state[key][i]
            add(f"blk.{i}.{name}.weight", interleaved(tensor, s.head) if key in TURNED else tensor)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def read(file: Path) -> tuple[Needle, dict]:
    """The model, and its tokenizer as the tokenizers library has it, of what write() wrote."""
    reader = gguf.GGUFReader(file)

    def field(name: str) -> object:
        return reader.get_field(name).contents()

    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    head = int(field("llama.attention.key_length"))
    n_vocabulary, width = tensors["token_embd.weight"].shape
    shape = Shape(
        n_layers=int(field("llama.block_count")), width=width,
        n_heads=int(field("llama.attention.head_count")),
        n_kv_heads=int(field("llama.attention.head_count_kv")),
        head=head, inner=int(field("llama.feed_forward_length")), vocabulary=n_vocabulary,
        rope_base=float(field("llama.rope.freq_base")),
        n_turning=int((tensors["rope_freqs.weight"] == 1).sum()),
        eps=float(field("llama.attention.layer_norm_rms_epsilon")),
    )  # fmt: skip
    state = {"embedding": tensors["token_embd.weight"], "gain": tensors["output_norm.weight"]}
    for name, key in LAYER.items():
        layers = [tensors[f"blk.{i}.{name}.weight"] for i in range(shape.n_layers)]
        state[key] = np.stack([halved(w, head) if key in TURNED else w for w in layers])
    model = Needle(shape)
    model.load_state_dict({k: torch.from_numpy(np.array(v, np.float32)) for k, v in state.items()})
    names = field("tokenizer.ggml.tokens")
    merges = [m.split(" ") for m in field("tokenizer.ggml.merges")]
    return model, {"vocab": {name: i for i, name in enumerate(names)}, "merges": merges}


def main() -> None:
    """Converts."""
    arg = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arg.add_argument("--back", action="store_true", help="from GGUF to a checkpoint")
    arg.add_argument("a", type=Path)
    arg.add_argument("b", type=Path)
    arg.add_argument("c", type=Path)
    arg.add_argument("kind", nargs="?", default="q8_0", choices=("f32", "q8_0"))
    o = arg.parse_args()
    if o.back:
        model, known = read(o.a)
        for folder in (o.b, o.c):
            folder.mkdir(parents=True, exist_ok=True)
        save(model, o.b, {"from": o.a.name})
        from corpus import make_tokenizer

        make_tokenizer(known["vocab"], known["merges"]).save(str(o.c / "tokenizer.json"))
        return
    write(load(o.b), o.a / "tokenizer.json", o.c, o.kind)
    print(f"{o.c}: {o.c.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
