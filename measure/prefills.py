"""Seconds to the first token: llama.cpp, exact, and selective; and what a recall costs. One call, one record.

    measure/prefills.py --out results/selective-gpu-DEVICE.json          # 32K and 128K, all layers on the GPU
    measure/prefills.py --shape tiny --layers 0 --tokens 600 1200 --recall 1200 --new 48 --every 16 --out FILE

The model has a real one's shape and random weights, in --folder, where it is made once. Looks ahead never
agree on what such weights look at. So there are two selective prefills: `selective` chooses after the two
looks that the earliest selection of a real model takes (select_settled 1e-6), and `shipped` has the settings
that ship, looks four times and stays exact: that is what looking costs where it is in vain.

Each way evaluates the prompt --repeats times after one short prompt; seconds are medians, up to the logits of
the last token. The ways take turns, so that a machine that gets slower does so for all of them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import recall
from snapkv_local import SnapKVConfig
from snapkv_local.bench import record as records
from snapkv_local.bench.runner import Machine
from snapkv_local.bench.shapes import SHAPES
from snapkv_local.hardware import n_cores

ROOT = Path(__file__).resolve().parent.parent

# the least that two looks can agree in, so that they always do
_FORCED = 1e-6
WAYS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "exact": {},
    "selective": {"prefill": "selective", "select_settled": _FORCED},
    "shipped": {"prefill": "selective"},
}
_SETTINGS = ("budget", "prefill", "select_share", "select_depth", "select_settled", "select_min")


class Bench:
    """Llamas of one model and prompt length: plain, and one that takes all other ways."""

    def __init__(self, args: argparse.Namespace, path: Path, n_prompt: int) -> None:
        # only now: it loads the native library
        from snapkv_local.llama.llama import Llama

        self.config = SnapKVConfig(budget=args.budget, decode_cells=64)
        loading: dict[str, Any] = {
            "n_ctx": n_prompt + 64,
            "n_gpu_layers": args.n_gpu_layers,
            "n_batch": 2048,
            "n_ubatch": args.ubatch,
            "n_threads": args.threads,
            "n_threads_batch": args.threads,
            "verbose": False,
        }
        self.plain = Llama(str(path), flash_attn=True, **loading)
        self.ours = Llama(str(path), snapkv=self.config, **loading)
        self.n_vocab = self.ours.n_vocab()

    def run(self, way: str, tokens: list[int]) -> tuple[float, dict[str, Any]]:
        """Seconds until the last token's logits are there, and what was done."""
        settings = WAYS[way]
        llm = self.plain if settings is None else self.ours
        llm.reset()
        if settings is not None:
            llm.set_snapkv(replace(self.config, **settings))
        began = time.perf_counter()
        stats = None if settings is None else llm.prefill(tokens)
        if settings is None:
            llm.eval(tokens)
        llm.last_logits().sum()
        seconds = time.perf_counter() - began
        if stats is None:
            return seconds, {}
        config = {name: getattr(llm.snapkv, name) for name in _SETTINGS}
        return seconds, {"config": config, "stats": stats.to_dict()}

    def close(self) -> None:
        """Free both."""
        self.plain.close()
        self.ours.close()


def first_tokens(args: argparse.Namespace, path: Path, n_prompt: int) -> list[dict[str, Any]]:
    """A run of each way on a prompt of so many tokens."""
    bench = Bench(args, path, n_prompt)
    try:
        tokens = Random(n_prompt).choices(range(3, bench.n_vocab), k=n_prompt)
        found: dict[str, dict[str, Any]] = {}
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for way in WAYS:
            bench.run(way, tokens[: min(n_prompt, 4 * args.ubatch)])  # kernels are loaded by now
        for _ in range(args.repeats):
            for way in WAYS:
                took, found[way] = bench.run(way, tokens)
                seconds[way].append(round(took, 4))
                print(f"{n_prompt:,} tokens, {way}: {took:.2f} s", file=sys.stderr, flush=True)
    finally:
        bench.close()
    return [
        {
            "way": way,
            "n_prompt": n_prompt,
            "seconds": statistics.median(seconds[way]),
            "all_seconds": seconds[way],
            "n_ubatch": args.ubatch,
            **found[way],
        }
        for way in WAYS
    ]


def one_recall(args: argparse.Namespace, path: Path) -> dict[str, Any]:
    """What measure/recall.py measures, of one prompt."""
    from snapkv_local.llama.llama import Llama

    config = SnapKVConfig(
        budget=args.budget,
        vault="ram",
        decode_cells=args.new + 32,
        recall=True,
        recall_every=args.every,
    )
    llm = Llama(
        str(path),
        snapkv=config,
        n_ctx=args.recall + args.new,
        n_gpu_layers=args.n_gpu_layers,
        n_batch=2048,
        n_ubatch=args.ubatch,
        n_threads=args.threads,
        n_threads_batch=args.threads,
        verbose=False,
    )
    try:
        tokens = Random(1).choices(range(3, llm.n_vocab()), k=args.recall + args.new)
        return recall.summary(llm, config, tokens[: args.recall], tokens[args.recall :])
    finally:
        llm.close()


def table(record: dict[str, Any]) -> str:
    """What was found, for people."""
    lines = []
    for run in record["runs"]:
        lines.append(f"{run['n_prompt']:>9,} {run['way']:<10} {run['seconds']:8.2f} s")
        if (stats := run.get("stats")) and run["config"]["prefill"] == "selective":
            lines[-1] += f"  {stats['n_selected']:,} rows after {stats['n_layer_all']} layers"
            lines[-1] += f", looks {stats['seconds_select']:.2f} s"
    if of := record["recall"]:
        lines.append(
            f"{of['n_prompt']:>9,} a recall   {of['seconds_rank']:8.3f} s, waits {of['seconds_wait']:.3f} s, "
            f"copies {of['seconds_copy']:.3f} s; a token {1000 * of['seconds_token']:.1f} ms"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama31-8b")
    parser.add_argument("--type", default="q4_0", help="of the matrices")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "models")
    parser.add_argument("--layers", default="all", help="that go to the GPU")
    parser.add_argument("--tokens", type=int, nargs="+", default=[32_768, 131_072])
    parser.add_argument("--recall", type=int, default=131_072, help="tokens of its prompt; 0: none")
    parser.add_argument("--budget", type=int, default=2048)
    parser.add_argument("--new", type=int, default=256, help="tokens after the recall's prompt")
    parser.add_argument("--every", type=int, default=64, help="tokens between two recalls")
    parser.add_argument("--ubatch", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=n_cores())
    parser.add_argument("--commit", default=None, help="for the record, where there is no git")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    args.n_gpu_layers = -1 if args.layers == "all" else int(args.layers)
    if args.recall and args.new < 3 * args.every:
        parser.error("--new must be at least three times --every: the first recall is left out")
    if args.n_gpu_layers:
        os.environ.setdefault("SNAPKV_UNPROVEN", "1")  # recall is not proven on GPUs

    path = recall.made(args.shape, args.type, args.folder)
    machine = Machine.describe()
    found: dict[str, Any] = {
        "kind": "prefills",
        "format": records.FORMAT,
        "date": date.today().isoformat(),
        "commit": args.commit or records.commit(ROOT),
        "machine": records.machine(),
        "device": machine.device(
            machine.n_gpu_layers(args.layers if args.layers == "all" else args.n_gpu_layers)
        ),
        "model": f"{args.shape} {args.type}, random weights",
        "threads": args.threads,
        "runs": [],
        "recall": None,
    }
    for n_prompt in args.tokens:
        found["runs"] += first_tokens(args, path, n_prompt)
        records.write(args.out, found)
    if args.recall:
        found["recall"] = one_recall(args, path)
        records.write(args.out, found)
    print(table(found))


if __name__ == "__main__":
    main()
