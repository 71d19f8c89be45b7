"""Held-out questions with the full cache, in PyTorch: evaluate.py DATA CHECKPOINT CASES.jsonl OUT.jsonl

A document is read once; each question goes on from there. An answer is right where each of its tokens is the
most likely one after the opening and what came before it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch.nn.attention import SDPBackend

from model import COMPUTE, Needle, load


def spell(tokenizer: Tokenizer, text: str, device: str) -> torch.Tensor:
    """Its tokens, [n]."""
    return torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids, device=device)


def read(model: Needle, ids: torch.Tensor, chunk: int = 65_536) -> list:
    """A cache of a document's tokens."""
    cache = None
    for part in ids.split(chunk):
        _, cache = model.go_on(part, cache)
    return cache or []


def answer(model: Needle, tokenizer: Tokenizer, cache: list, question: dict, device: str) -> dict:
    """Is it right, and what would the model say?"""
    opening, value = question["opening"], question["answer"]
    begin = f"\n\n{question['words']}<|im_end|>\n<|im_start|>assistant\n{opening}"
    is_continuing = bool(opening) or question["task"] == "passage"
    prompt = spell(tokenizer, begin, device)
    gold = spell(tokenizer, f" {value}" if is_continuing else value, device)
    x, _ = model.go_on(torch.cat([prompt, gold[:-1]]), cache)
    said = model.logits(x[len(prompt) - 1 :]).argmax(-1)
    return {"task": question["task"], "depth": question["depth"], "is_right": bool((said == gold).all()),
            "answer": value, "said": tokenizer.decode(said.tolist())}  # fmt: skip


def main() -> None:
    """All cases."""
    arg = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arg.add_argument("data", type=Path)
    arg.add_argument("checkpoint", type=Path)
    arg.add_argument("cases", type=Path)
    arg.add_argument("out", type=Path)
    arg.add_argument(
        "--seconds", type=float, default=60, help="after which no further document is read"
    )
    o = arg.parse_args()
    begin = time.time()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        COMPUTE.dtype, COMPUTE.backend = torch.bfloat16, SDPBackend.FLASH_ATTENTION
    model = load(o.checkpoint, device)
    tokenizer = Tokenizer.from_file(str(o.data / "tokenizer.json"))
    sums: dict[int, dict[str, list[bool]]] = {}
    with o.cases.open(encoding="utf-8") as cases, o.out.open("w", encoding="utf-8") as out:
        for line in cases:
            if time.time() - begin > o.seconds:
                print("the time is over")
                break
            case = json.loads(line)
            ids = spell(tokenizer, f"<|im_start|>user\n{case['text']}", device)
            cache = read(model, ids)
            answers = [answer(model, tokenizer, cache, q, device) for q in case["questions"]]
            out.write(
                json.dumps({"length": case["length"], "tokens": len(ids), "answers": answers})
                + "\n"
            )
            by_task = sums.setdefault(case["length"], {})
            for a in answers:
                by_task.setdefault(a["task"], []).append(a["is_right"])
    for length, by_task in sums.items():
        shares = " ".join(f"{task} {sum(v)}/{len(v)}" for task, v in by_task.items())
        right = sum(sum(v) for v in by_task.values()) / sum(len(v) for v in by_task.values())
        print(f"[{time.time() - begin:5.1f}] {length}: {100 * right:.1f} %: {shares}", flush=True)


if __name__ == "__main__":
    main()
