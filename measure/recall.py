"""What recall while answering costs: seconds of each token, with it and without, in one call.

    measure/recall.py              # SmolLM2 on the CPU, results/recall-cost-smollm2.json
    measure/recall.py --shape llama31-8b --layers all --tokens 131072 --budgets 2048 --every 64 --out FILE

A text, or tokens at random where the model has no text of ours, is prefilled with a vault, and the same
tokens are decoded after it, one by one: without recall, then with it, and so on in turn. Tokens whose queries
are read are slower, and so are those that wait for a recall or are computed beside one. Medians, of the
recalls after the first; speed by seconds of the process, too, which other programs on the machine change
less. --rows and --delay are settings of SnapKVConfig, of which each is measured.
"""

from __future__ import annotations

import argparse
import importlib.resources
import os
import statistics
import sys
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

from snapkv_local import SnapKVConfig
from snapkv_local.bench import record as records
from snapkv_local.bench.make_model import make_model
from snapkv_local.bench.runner import Machine
from snapkv_local.bench.shapes import SHAPES
from snapkv_local.hardware import n_cores
from snapkv_local.models.resolve import demo_model

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "results" / "recall-cost-smollm2.json"


def made(shape: str, kind: str, folder: Path) -> Path:
    """A model of a real one's shape with random weights, made if it is not there."""
    path = folder / f"{shape}-{kind}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        seconds = make_model(SHAPES[shape], kind, path, name=shape).seconds
        print(f"made {path} in {seconds:.0f} s", file=sys.stderr, flush=True)
    return path


def timed(llm: Any, prompt: list[int], answer: list[int]) -> tuple[list[float], list[float]]:
    """Seconds of each token of the answer: on the clock, and of the process."""
    llm.reset()
    llm.prefill(prompt)
    wall, cpu = [], []
    for token in answer:
        started, used = time.perf_counter(), time.process_time()
        llm.logits_for([token], last=1)
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - used)
    return wall, cpu


def ratio(off: list[float], on: list[float], every: int) -> float:
    """Speed with recall, as a share of that without, of the same tokens.

    A round is `every` tokens; of each place in it the median, since a busy machine makes some tokens slow.
    The first recall, with what goes before it, is left out: rounds count from the second one's tokens on.
    """
    rounds = [
        sum(statistics.median(seconds[2 * every + i :: every]) for i in range(every))
        for seconds in (off, on)
    ]
    return rounds[0] / rounds[1]


def summary(
    llm: Any, config: SnapKVConfig, prompt: list[int], answer: list[int], repeats: int
) -> dict[str, Any]:
    """Of one setting."""
    every = config.recall_every
    answer = answer[: len(answer) // every * every]
    places = range(every - config.recall_queries, every - 1)  # whose queries are read
    wall, cpu, watched, recalls, speeds = [], [], [], [], []
    for _ in range(repeats):
        llm.set_snapkv(replace(config, recall=False))
        off = timed(llm, prompt, answer)
        prefill = llm.last_prefill.to_dict()
        llm.set_snapkv(config)
        on = timed(llm, prompt, answer)
        first, *others = llm.recalls()
        wall += off[0]
        cpu += off[1]
        watched += [s for i, s in enumerate(on[0]) if i % every in places]
        recalls += others
        speeds.append([ratio(*both, every) for both in zip(off, on, strict=True)])
    return {
        "n_prompt": len(prompt),
        "n_new": len(answer),
        "budget": config.budget,
        "every": every,
        "queries": config.recall_queries,
        "rows_asked": config.recall_rows,
        "delay": config.recall_delay,
        "bytes_vault": prefill["bytes_vault"],
        "seconds_token": statistics.median(wall),
        "seconds_token_cpu": statistics.median(cpu),
        "seconds_token_watched": statistics.median(watched) if watched else None,
        "seconds_rank": statistics.median(r.seconds_rank for r in recalls),
        "seconds_wait": statistics.median(r.seconds_wait for r in recalls),
        "seconds_copy": statistics.median(r.seconds_copy for r in recalls),
        "seconds_first_recall": first.seconds_wait + first.seconds_copy,
        "bytes_index": recalls[-1].bytes_index,
        "bytes_votes": recalls[-1].bytes_votes,
        "rows": statistics.median(r.n_rows for r in recalls),
        "bytes": statistics.median(r.n_bytes for r in recalls),
        "repeats": repeats,
        "speed": statistics.median(by_clock for by_clock, _ in speeds),
        "speed_cpu": statistics.median(by_cpu for _, by_cpu in speeds),
        "recalls": [recall.to_dict() for recall in (first, *others)],
    }


def main() -> None:
    # only now: it loads the native library
    from snapkv_local.llama.llama import Llama

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=None, help="default: SmolLM2")
    parser.add_argument(
        "--shape", choices=sorted(SHAPES), help="with random weights, in place of a model"
    )
    parser.add_argument("--type", default="q4_0", help="of that one's matrices")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "build" / "models", help="of that one"
    )
    parser.add_argument("--layers", default="0", help="that go to the GPU, or all")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2000, 4000])
    parser.add_argument("--budgets", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--every", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--queries", type=int, default=SnapKVConfig.recall_queries)
    parser.add_argument("--rows", type=int, nargs="+", default=[SnapKVConfig.recall_rows])
    parser.add_argument("--delay", nargs="+", default=["auto"])
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5, help="of both, in turn")
    parser.add_argument("--commit", default=None, help="for the record, where there is no git")
    parser.add_argument("--threads", type=int, default=n_cores())
    parser.add_argument("--out", type=Path, default=RECORD)
    args = parser.parse_args()
    if args.new < 3 * max(args.every):
        parser.error("--new must be at least three times --every: the first recall is left out")
    if args.shape:
        args.model = made(args.shape, args.type, args.folder)
    if args.model is not None and args.out == RECORD:
        parser.error("the record is SmolLM2's: name another file with --out")
    n_gpu_layers = -1 if args.layers == "all" else int(args.layers)
    if n_gpu_layers:
        os.environ.setdefault("SNAPKV_UNPROVEN", "1")  # nobody has run it there

    config = SnapKVConfig(
        budget=max(args.budgets),
        vault="ram",
        decode_cells=args.new + 32,
        recall_queries=args.queries,
    )
    llm = Llama(
        str(args.model or demo_model()),
        snapkv=config,
        n_ctx=max(args.tokens) + args.new,
        n_gpu_layers=n_gpu_layers,
        n_batch=512,
        n_ubatch=512,
        n_threads=args.threads,
        n_threads_batch=args.threads,
        verbose=False,
    )
    if args.model is None:
        folder = importlib.resources.files("snapkv_local")
        text = folder.joinpath("demo", "station.txt").read_bytes()
        tokens = llm.tokenize(text)
    else:
        tokens = Random(0).choices(range(3, llm.n_vocab()), k=max(args.tokens) + args.new)
    machine = Machine.describe()
    found: dict[str, Any] = {
        "date": date.today().isoformat(),
        "commit": args.commit or records.commit(ROOT),
        "machine": records.machine(),
        "model": (args.model or Path("SmolLM2-135M-Instruct Q4_1")).name,
        "device": machine.device(
            machine.n_gpu_layers(args.layers if args.layers == "all" else n_gpu_layers)
        ),
        "n_gpu_layers": n_gpu_layers,
        "threads": args.threads,
        "runs": [],
    }
    ways = [
        (every, rows, delay) for every in args.every for rows in args.rows for delay in args.delay
    ]
    for n_prompt in args.tokens:
        n = min(n_prompt, len(tokens) - args.new)
        for budget in args.budgets:
            for every, rows, delay in ways:
                wanted = replace(
                    config,
                    budget=budget,
                    recall=True,
                    recall_every=every,
                    recall_rows=rows,
                    recall_delay=delay if delay == "auto" else int(delay),
                )
                answer = tokens[n : n + args.new]
                found["runs"].append(summary(llm, wanted, tokens[:n], answer, args.repeats))
                records.write(args.out, found)
                row = {k: v for k, v in found["runs"][-1].items() if k != "recalls"}
                print(row, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
