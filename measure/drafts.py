"""What drafts cost: a token of the model, a guess of the smaller one, and a look at several tokens.

    python3 measure/drafts.py MODEL SMALLER --out FILE
    python3 measure/drafts.py needle needle --prompt-tokens 2k --budget 256 --out FILE

How often guesses are right depends on the models and the text, and made models agree about nothing. So the
record has what each step takes, and what the answer gains where all guesses are right; `break_even` is
the share that must be right for any gain.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]  # the package as it is here, installed or not

from snapkv_local import Llama, ModelDraft, SnapKVConfig, hardware  # noqa: E402
from snapkv_local.bench import record as records  # noqa: E402
from snapkv_local.bench.session import random_tokens  # noqa: E402
from snapkv_local.models.resolve import resolve  # noqa: E402
from snapkv_local.storage.new_file import write_text  # noqa: E402

N_GUESSES = (1, 2, 3, 5, 8, 16)
N_ROUNDS = 7
N_TOKENS = 32
N_ANSWER = 64


def make(model: str, args: argparse.Namespace) -> Llama:
    n_threads = args.threads or hardware.n_cores()
    return Llama(
        str(resolve(model)),
        snapkv=SnapKVConfig(budget=args.budget),
        n_ctx=max(args.prompt_tokens) + 1024,
        n_gpu_layers=args.gpu_layers,
        n_threads=n_threads,
        n_threads_batch=n_threads,
        verbose=False,
    )


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def answer(llm: Llama, prompt: list[int]) -> tuple[list[int], float]:
    """The likeliest tokens behind a prompt that was prefilled, and the seconds after the first one."""
    tokens = llm.generate(prompt, temp=0.0)
    found = [next(tokens)]
    seconds = timed(lambda: found.extend(islice(tokens, N_ANSWER)))
    tokens.close()
    return found, seconds


def measure(llm: Llama, draft: ModelDraft, n_prompt: int) -> dict[str, Any]:
    """One length of prompts."""
    prompt = random_tokens(llm.n_vocab(), n_prompt, 1).tolist()
    seconds_prefill = timed(lambda: llm.prefill(prompt))
    token = int(llm.last_logits().argmax())
    answer(
        llm, prompt
    )  # the next ones go on from the prompt's last token, this one from the prefill
    plain, seconds_plain = answer(llm, prompt)

    # as generate() has it: the token that was drawn is there, and not evaluated
    llm.n_tokens = n_prompt
    llm.input_ids[n_prompt] = token
    ids = llm.input_ids[: n_prompt + 1]
    draft.n_max = 1
    seconds_first_guess = timed(lambda: draft(ids))

    def look(n: int) -> None:
        """At a token and n guesses, which are wrong."""
        llm._generating = True
        try:
            llm.eval([token] * (n + 1))
        finally:
            llm._generating = False
        for position in range(n_prompt, llm.n_tokens):
            llm._logits_at(position).argmax()
        llm._end_at(n_prompt)

    def guess(n: int) -> None:
        draft.n_max = n
        draft(ids)

    steps = []
    look(0)
    seconds_token = statistics.median(timed(lambda: look(0)) for _ in range(N_TOKENS))
    for n in N_GUESSES:
        look(n), guess(n)  # buffers of this size
        of_look = statistics.median(timed(lambda n=n: look(n)) for _ in range(N_ROUNDS))
        of_guess = statistics.median(timed(lambda n=n: guess(n)) for _ in range(N_ROUNDS))
        steps.append(
            {
                "n_guesses": n,
                "seconds_guess": of_guess,
                "seconds_look": of_look,
                "gain_all_right": (n + 1) * seconds_token / (of_guess + of_look),
                "break_even": ((of_guess + of_look) / seconds_token - 1) / n,
            }
        )
    draft.n_max = 3
    llm.set_draft_model(draft)
    guessed, seconds_guessed = answer(llm, prompt)
    llm.set_draft_model(None)
    same = [a == b for a, b in zip(plain, guessed, strict=False)]
    return {
        "n_prompt": n_prompt,
        "n_kept": llm.last_prefill.n_kept if llm.last_prefill else n_prompt,
        "seconds_prefill": seconds_prefill,
        "seconds_first_guess": seconds_first_guess,
        "seconds_token": seconds_token,
        "steps": steps,
        "answer": {
            "n_tokens": len(plain),
            "n_same": same.index(False) if False in same else len(same),
            "n_drafted": llm.n_drafted,
            "n_accepted": llm.n_accepted,
            "seconds_plain": seconds_plain,
            "seconds_guessed": seconds_guessed,
        },
    }


def size(text: str) -> int:
    return int(text.removesuffix("k")) * (1024 if text.endswith("k") else 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("smaller")
    parser.add_argument("--prompt-tokens", type=size, nargs="+", default=[16384, 131072])
    parser.add_argument("--budget", type=int, default=2048)
    parser.add_argument("--gpu-layers", type=int, default=-1)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="", help="What it ran on, for the record.")
    parser.add_argument("--commit", default="")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    begun = time.monotonic()
    llm, draft = make(args.model, args), ModelDraft(make(args.smaller, args))
    draft.check(llm)
    found: dict[str, Any] = {
        "format": records.FORMAT,
        "date": date.today().isoformat(),
        "commit": args.commit or records.commit(ROOT),
        "machine": records.machine(),
        "device": args.device,
        "model": Path(llm.model_path).name,
        "smaller": Path(draft.llm.model_path).name,
        "budget": args.budget,
        "lengths": [],
    }
    for n_prompt in args.prompt_tokens:
        row = measure(llm, draft, n_prompt)
        found["lengths"].append(row)
        found["seconds"] = time.monotonic() - begun
        write_text(args.out, json.dumps(found, indent=1) + "\n")
        print(f"{n_prompt:,} tokens: one takes {1000 * row['seconds_token']:.2f} ms")
        for step in row["steps"]:
            print(
                f"  {step['n_guesses']:2} guesses {1000 * step['seconds_guess']:7.2f} ms, "
                f"a look {1000 * step['seconds_look']:7.2f} ms: "
                f"{step['gain_all_right']:.2f} times as fast if all are right, "
                f"a gain from {step['break_even']:.0%}"
            )
        print(f"  {row['answer']}", flush=True)


if __name__ == "__main__":
    main()
