"""Does llama.cpp compute what PyTorch does? check_gguf.py DATA CHECKPOINT

Converts to an f32 GGUF file, and compares tokens of several texts, and logits of a prompt with an f32 cache.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from model import load
from snapkv_local import Llama
from to_gguf import write

TEXTS = (
    "<|im_start|>user\nThe code is 49061.\n\nWhat is s3t9v1zs: 123456?<|im_end|>\n<|im_start|>assistant\n",
    "Grüße aus Köln, 東京 и Москва; naïve café 😀 — it's  two   spaces\n\n\n and\ttabs | 417 |\n| x |",
    "VAR RASITA = VAR TIZAFU. f(x) := 1234567890; \"quoted (text)\" isn't they'll \r\n end ",
)


def main(data: Path, checkpoint: Path) -> int:
    """Number of what differs."""
    model = load(checkpoint)
    tokenizer = Tokenizer.from_file(str(data / "tokenizer.json"))
    texts = [*TEXTS, (data / "held-out.txt").read_text("utf-8")[:20_000]]
    n_wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "f32.gguf"
        write(model, data / "tokenizer.json", file, "f32")
        llm = Llama(
            str(file), n_ctx=2048, type_k=0, type_v=0, logits_all=True, n_threads=1, verbose=False
        )
        for text in texts:
            here = llm.tokenize(text.encode(), add_bos=False, special=True)
            n_wrong += here != tokenizer.encode(text, add_special_tokens=False).ids
        ids = tokenizer.encode(texts[0] + texts[-1], add_special_tokens=False).ids[:700]
        llm.eval(ids)
        theirs = np.array(llm.scores[: len(ids)])
        llm.close()
    with torch.no_grad():
        ours = model.logits(model(torch.tensor(ids), len(ids))).numpy()
    largest = float(np.abs(ours - theirs).max())
    print(f"texts with other tokens: {n_wrong} of {len(texts)}")
    print(
        f"logits of {len(ids)} tokens differ by {largest:.1e} at most; standard deviation {ours.std():.2f}"
    )
    return n_wrong + (largest > 1e-3 * ours.std())


if __name__ == "__main__":
    sys.exit(int(main(Path(sys.argv[1]), Path(sys.argv[2])) > 0))
