"""A long answer in a small cache: speed and evictions, and how near it stays to the full cache.

    measure/endless.py          # writes results/endless-smollm2.json

1. A text of 1,500 tokens is continued by 3,000, with cells for 768. Tokens that would end it are banned,
   and those that would repeat five tokens in a row: so small a model would soon be in a loop.
2. The same tokens are fed to the full cache, to ours, which evicts as it did, and to a sliding window of
   equal cells: at each event its newest rows stay. KL to the full cache, mean over each stretch between
   two events. All with and without 4 sinks. One text is continued by ours, the other by its author (the
   manual of Python).
"""

from __future__ import annotations

import argparse
import importlib.resources
import statistics
import sys
from dataclasses import asdict
from datetime import date
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from endless_quality import N_BATCH, SINKS, compared, nearer
from endless_speed import N_REPEATED, TEMPERATURE, completed, continued, speed
from snapkv_local import SnapKVConfig
from snapkv_local.bench import record as records
from snapkv_local.eval.prose import manual
from snapkv_local.hardware import n_cores
from snapkv_local.models.resolve import demo_model

if TYPE_CHECKING:
    from snapkv_local.llama.llama import Llama

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "results" / "endless-smollm2.json"

N_PROMPT = 1500
N_NEW = 3000
N_CTX = 8192
N_COMPARED = 500  # tokens at the answer's begin and end whose speed is compared
CONFIG = SnapKVConfig(budget=512, decode_cells=256)
SEEDS = (1, 2)


def main() -> None:
    # only now: it loads the native library
    from snapkv_local.llama.llama import Llama

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=n_cores())
    parser.add_argument("--tokens", type=int, default=N_NEW)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--out", type=Path, default=RECORD)
    args = parser.parse_args()
    if args.tokens != N_NEW and args.out == RECORD:
        parser.error(f"the record is of {N_NEW} tokens: name another file with --out")
    commit = records.commit(ROOT)

    def make(config: SnapKVConfig | None) -> Llama:
        return Llama(
            str(demo_model()),
            snapkv=config,
            n_ctx=N_CTX,
            n_batch=N_BATCH,
            n_ubatch=N_BATCH,
            flash_attn=True,
            n_threads=args.threads,
            n_threads_batch=args.threads,
            verbose=False,
        )

    found: dict[str, Any] = {
        "date": date.today().isoformat(),
        "commit": commit,
        "machine": records.machine(),
        "model": "SmolLM2-135M-Instruct Q4_1",
        "settings": {
            "n_prompt": N_PROMPT,
            "n_new": args.tokens,
            "n_ctx": N_CTX,
            "temperature": TEMPERATURE,
            "seeds": list(args.seeds),
            "n_repeated": N_REPEATED,
            "threads": args.threads,
            "kv_type": "f16",
            "snapkv": asdict(CONFIG),
        },
        "speed": [],
        "quality": [],
    }

    def keep(part: str, row: dict[str, Any]) -> None:
        found[part].append(row)
        records.write(args.out, found)
        short = {
            name: row[name] for name in row if name not in ("seconds", "seconds_cpu", "evictions")
        }
        print(short, file=sys.stderr, flush=True)

    compact, plain = make(CONFIG), make(None)
    story = importlib.resources.files("snapkv_local").joinpath("demo", "station.txt").read_bytes()
    prompt = compact.tokenize(story)[:N_PROMPT]
    for seed in args.seeds:
        run = continued(compact, prompt, args.tokens, seed)
        tokens = run.pop("tokens")
        n_compared = min(N_COMPARED, args.tokens // 3)
        row = {
            "seed": seed,
            "wall": speed(run["seconds"], run["events"], n_compared),
            "cpu": speed(run["seconds_cpu"], run["events"], n_compared),
            "seconds_event_median": statistics.median(
                stats["seconds_prefill"] for stats in run["evictions"]
            ),
            "seconds_token_median": statistics.median(run["seconds"]),
            **run,
        }
        if seed == args.seeds[0]:
            ours = tokens
            answer = completed(compact, prompt, args.tokens, seed)
            says = compact.detokenize(tokens, prev_tokens=prompt).decode(errors="ignore")
            answer["same_text"] = answer.pop("text") == says
            row["completion"] = answer
        keep("speed", row)
    book = compact.tokenize("".join(manual(Random(0), "test")).encode())
    begin, end = book[:N_PROMPT], book[N_PROMPT : N_PROMPT + args.tokens]
    texts = (("ours", prompt, ours), ("the manual of Python", begin, end))
    for name, begin, text in texts:
        distances = compared(plain, compact, begin, text)
        pairs = [("ours", "sliding window")]
        pairs.append(tuple(f"{way}, {SINKS} sinks" for way in pairs[0]))
        keep(
            "quality",
            {
                "continued by": name,
                "kl_by_stretch": distances,
                "against": {f"{a} / {b}": nearer(distances[a], distances[b]) for a, b in pairs},
            },
        )


if __name__ == "__main__":
    main()
