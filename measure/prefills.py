"""Seconds to the first token: llama.cpp, exact, and selective; and what a recall costs. One call, one record.

    measure/prefills.py --out results/selective-gpu-DEVICE.json          # 32K and 128K, all layers on the GPU
    measure/prefills.py --model demo --layers 0 --tokens 4096 8192 --budget 512 --threads 1 --recall 0 \\
        --out results/selective-cpu-smollm2.json                          # a model's own file
    measure/prefills.py --shape tiny --layers 0 --tokens 600 1200 --recall 1200 --new 48 --every 16 --out FILE

The model has a real one's shape and random weights, in --folder, where it is made once. Looks ahead never
agree on what such weights look at. So there are two selective prefills: `selective` chooses after the two
looks that the earliest selection of a real model takes (select_settled 1e-6), and `shipped` has the settings
that ship, looks four times and stays exact: that is what looking in vain costs. A --model is asked
about a text. Its `selective` has the settings that ship, and there is no `shipped`.

Each way evaluates the prompt --repeats times after one short prompt; seconds are medians, up to the logits of
the last token, and so are CPU seconds, of all threads together. The ways take turns, so that a machine that
gets slower does so for all of them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import recall
from snapkv_local import SnapKVConfig
from snapkv_local.bench import record as records
from snapkv_local.bench.matrix import Model
from snapkv_local.bench.runner import Machine
from snapkv_local.bench.shapes import SHAPES
from snapkv_local.eval.case import Case
from snapkv_local.eval.tasks import Wanted, get
from snapkv_local.eval.tokens import open_tokens
from snapkv_local.hardware import n_cores
from snapkv_local.models.resolve import resolve

ROOT = Path(__file__).resolve().parent.parent

# the least that two looks can agree in, so that they always do
_FORCED = 1e-6
WAYS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "exact": {},
    "selective": {"prefill": "selective", "select_settled": _FORCED},
    "shipped": {"prefill": "selective"},
}
# of a model that knows what it looks at
TRAINED: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "exact": {},
    "selective": {"prefill": "selective"},
}
_SETTINGS = ("budget", "prefill", "select_share", "select_depth", "select_settled", "select_min")


class Bench:
    """Llamas of one model and prompt length: plain, and one that takes all other ways."""

    def __init__(self, args: argparse.Namespace, path: Path, n_prompt: int) -> None:
        # only now: it loads the native library
        from snapkv_local.llama.llama import Llama

        self.ways = TRAINED if args.model else WAYS
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

    def run(self, way: str, tokens: Sequence[int]) -> tuple[float, float, dict[str, Any]]:
        """Seconds until the last token's logits are there, those of CPUs, and what was done."""
        settings = self.ways[way]
        llm = self.plain if settings is None else self.ours
        llm.reset()
        if settings is not None:
            llm.set_snapkv(replace(self.config, **settings))
        began, cpu = time.perf_counter(), time.process_time()
        stats = None if settings is None else llm.prefill(tokens)
        if settings is None:
            llm.eval(tokens)
        llm.last_logits().sum()
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        if stats is None:
            return seconds, cpu, {}
        config = {name: getattr(llm.snapkv, name) for name in _SETTINGS}
        return seconds, cpu, {"config": config, "stats": stats.to_dict()}

    def close(self) -> None:
        """Free both."""
        self.plain.close()
        self.ours.close()


def first_tokens(args: argparse.Namespace, path: Path, n_prompt: int) -> list[dict[str, Any]]:
    """A run of each way on a prompt of so many tokens."""
    bench = Bench(args, path, n_prompt)
    try:
        tokens: Sequence[int]
        if args.model:
            case = _case(path, n_prompt)
            tokens, question = case.prompt, case.question
        else:
            tokens = Random(n_prompt).choices(range(3, bench.n_vocab), k=n_prompt)
            question = None
        found: dict[str, dict[str, Any]] = {}
        seconds: dict[str, list[float]] = {way: [] for way in bench.ways}
        cpu: dict[str, list[float]] = {way: [] for way in bench.ways}
        for way in bench.ways:
            bench.run(way, tokens[: min(n_prompt, 4 * args.ubatch)])  # kernels are loaded by now
        bench.ours.set_question(question)
        for _ in range(args.repeats):
            for way in bench.ways:
                took, computed, found[way] = bench.run(way, tokens)
                seconds[way].append(round(took, 4))
                cpu[way].append(round(computed, 4))
                print(f"{n_prompt:,} tokens, {way}: {took:.2f} s", file=sys.stderr, flush=True)
    finally:
        bench.close()
    return [
        {
            "way": way,
            "n_prompt": len(tokens),
            "seconds": statistics.median(seconds[way]),
            "all_seconds": seconds[way],
            "cpu_seconds": statistics.median(cpu[way]),
            "all_cpu_seconds": cpu[way],
            "n_ubatch": args.ubatch,
            **found[way],
        }
        for way in bench.ways
    ]


def _case(path: Path, n_prompt: int) -> Case:
    """A question about a text of about so many tokens."""
    tokens = open_tokens(path, None)
    try:
        wanted = Wanted(lengths=(n_prompt,), n_documents=1, n_questions=1)
        return next(iter(get("needle").cases(tokens, wanted)))
    finally:
        tokens.llm.close()


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
    parser.add_argument("--model", help="a path, demo, or needle, in the place of --shape")
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

    path = resolve(args.model) if args.model else recall.made(args.shape, args.type, args.folder)
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
        "model": Model.read(path).name
        if args.model
        else f"{args.shape} {args.type}, random weights",
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
