"""What it costs with recurrent layers to take guesses back: answers with right guesses, and wrong ones.

    python3 measure/looks.py --shape qwen35-9b --layers 8 --out FILE

The model has random weights and the real one's layers, but fewer of them. The guesses are read off an answer
without drafts, and made wrong at an index, so that how long an answer takes depends on nothing else. All
times are given in those of a token without drafts, measured in the same round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]  # the package as it is here, installed or not

from snapkv_local import Llama, SnapKVConfig, hardware  # noqa: E402  # isort: skip

import numpy as np  # noqa: E402
from llama_cpp.llama_speculative import LlamaDraftModel  # noqa: E402

from snapkv_local.bench import record as records  # noqa: E402
from snapkv_local.bench.make_model import make_model  # noqa: E402
from snapkv_local.bench.session import random_tokens  # noqa: E402
from snapkv_local.bench.shapes import SHAPES  # noqa: E402
from snapkv_local.storage.new_file import write_text  # noqa: E402


class Guesses(LlamaDraftModel):
    """What a text says next, with a wrong token at an index of each guess; None for nowhere."""

    def __init__(self, text: list[int], n: int, wrong_at: int | None) -> None:
        self.text, self.n, self.wrong_at = text, n, wrong_at

    def __call__(self, input_ids: Any, /, **_: Any) -> Any:
        found = np.array(self.text[len(input_ids) : len(input_ids) + self.n], np.intc)
        if self.wrong_at is not None and self.wrong_at < len(found):
            found[self.wrong_at] = (found[self.wrong_at] + 1) % 1000
        return found


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def answer(llm: Llama, prompt: list[int], n: int) -> tuple[list[int], float]:
    """The likeliest tokens, and the seconds of each after the first one."""
    tokens = llm.generate(prompt, temp=0.0)
    found = [next(tokens)]
    seconds = timed(lambda: found.extend(islice(tokens, n - 1)))
    tokens.close()
    return found, seconds / (n - 1)


def measure(llm: Llama, prompt: list[int], args: argparse.Namespace) -> dict[str, Any]:
    """Rounds of all cases, of one guess's length."""
    expected, _ = answer(llm, prompt, args.tokens + args.guesses)
    rows: dict[int | None, dict[str, Any]] = {}
    copies: list[float] = []
    for _ in range(args.rounds):
        plain, seconds = answer(llm, prompt, args.tokens)
        context: Any = llm._ctx
        copies.append(timed(context.begin_look) / seconds)
        context.end_looks()
        for at in (None, *range(args.guesses)):
            llm.set_draft_model(Guesses([*prompt, *expected], args.guesses, at))
            found, each = answer(llm, prompt, args.tokens)
            llm.set_draft_model(None)
            same = [a == b for a, b in zip(plain, found, strict=True)]
            row = rows.setdefault(at, {"times": []})
            row["times"].append(each / seconds)
            row |= {
                "n_same": same.index(False) if False in same else len(same),
                "n_drafted": llm.n_drafted,
                "n_accepted": llm.n_accepted,
                "n_looks": llm.n_looks,
                "n_again": llm.n_again,
            }
    return {
        "time_of_a_copy": statistics.median(copies),
        "cases": [
            {"wrong_at": at, "time_per_token": statistics.median(row.pop("times")), **row}
            for at, row in rows.items()
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", default="qwen35-9b", choices=sorted(SHAPES))
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--budget", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=33, help="Of each answer.")
    parser.add_argument("--guesses", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gpu-layers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{args.shape}.gguf"
        # a large vocabulary would hide the layers, of which there are few
        shape = replace(SHAPES[args.shape], n_layer=args.layers, n_vocab=32_768)
        make_model(shape, "q4_0", path, name=args.shape)
        n_threads = args.threads or hardware.n_cores()
        llm = Llama(
            str(path),
            snapkv=SnapKVConfig(budget=args.budget),
            n_ctx=args.prompt_tokens + 1024,
            n_gpu_layers=args.gpu_layers,
            n_threads=n_threads,
            n_threads_batch=n_threads,
            verbose=False,
        )
        prompt = random_tokens(llm.n_vocab(), args.prompt_tokens, 1).tolist()
        found = {
            "format": records.FORMAT,
            "date": date.today().isoformat(),
            "commit": records.commit(ROOT),
            "machine": records.machine(),
            "model": args.shape,
            "n_layer": args.layers,
            "n_guesses": args.guesses,
            "n_threads": n_threads,
            **measure(llm, prompt, args),
        }
        llm.close()
    write_text(args.out, json.dumps(found, indent=1) + "\n")
    print(f"a copy of the states takes {found['time_of_a_copy']:.3f} of a token")
    for row in found["cases"]:
        print(row)


if __name__ == "__main__":
    main()
