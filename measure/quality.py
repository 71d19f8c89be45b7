"""What compression costs: the records of `snapkv-local eval` in results/, several at a time.

    measure/quality.py --out DIR                                  # all of them
    measure/quality.py --out DIR 'smollm2-2k-*' heads-needle-2k   # some; --list names them
    measure/quality.py --out DIR --minutes 9 --parallel 14        # begin none that would end later

A record that DIR has is gone on with, and one that is complete takes no time. The tables of docs/ are
made from those in results/ (scripts/tables.py).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from snapkv_local.policies.selective import Selective

ROOT = Path(__file__).resolve().parent.parent

_LAST = "observation=16"
_WIDE = f"snapkv-paper:kernel_size=21+aggregation=max+{_LAST}"
_FORM = f"kernel_size=21+self_weight=0.25+pooling=nosink+aggregation=max+{_LAST}"
_VALUE = f"value:{_FORM}"
_SENTENCE = f"sentence:of=snapkv-paper:kernel_size=1+aggregation=max+{_LAST}"
_FEW = ("snapkv-paper", "snapkv", f"snapkv:{_LAST}", _WIDE, "streaming")
_ALL = (*_FEW[:4], _VALUE, _SENTENCE, "streaming", "random")
_LAYERS = (*_FEW[:3], f"windows:{_FORM}", f"{_VALUE}+kind=caote")
_SHARED = (f"pyramid:of=snapkv:{_LAST}", f"adaptive:of=snapkv:{_LAST}")
_THREE = ("snapkv-paper", "snapkv", "streaming")
_JOINT = ("snapkv", "joint", "snapkv-paper", "joint:of=snapkv-paper")
_UNASKED = ("snapkv", "streaming", "expected", "replay", "level:of=replay")
_TYPES = ("f16", "q8_0", "q4_0")
_TEXT, _STRESS = ("continue", "code"), ("keys", "trace", "count")


@dataclass(frozen=True)
class Evaluation:
    """One record, NAME.json.

    Attributes:
        model: smollm2, gemma3 or needle.
        length: of the prompts, in tokens.
        documents, questions: of each task.
    """

    name: str
    model: str
    length: int
    tasks: tuple[str, ...]
    documents: int = 8
    questions: int = 3
    policies: tuple[str, ...] = _ALL
    budgets: tuple[int, ...] = (64, 128, 256, 512)
    kv_types: tuple[str, ...] = ("f16",)

    def arguments(self, model: str, out: Path) -> list[str]:
        """Of the command, with the model's file."""
        lists = {
            "tasks": self.tasks,
            "policies": self.policies,
            "budgets": map(str, self.budgets),
            "kv-types": self.kv_types,
        }
        found = ["eval", model, "--lengths", str(self.length), "--cases", str(self.documents)]
        paper = "snapkv-paper"
        against = paper if paper in self.policies else self.policies[0]
        found += ["--questions", str(self.questions), "--against", against]
        for name, values in lists.items():
            found += [f"--{name}", ",".join(values)]
        return [*found, "--json", str(out / f"{self.name}.json")]


def _of_length(length: int, name: str) -> list[Evaluation]:
    """SmolLM2's records of a length."""
    smol, h2o = f"eval-smollm2-{name}", ("h2o",) if length == 2048 else ()
    return [
        Evaluation(f"{smol}-needle", "smollm2", length, ("needle",), 20),
        Evaluation(f"{smol}-stress", "smollm2", length, _STRESS, 8, 1, (*_ALL, *h2o)),
        Evaluation(f"{smol}-text", "smollm2", length, _TEXT, 12, 1),
        *(
            Evaluation(f"{smol}-{task}", "smollm2", length, (task,))
            for task in ("needles", "question-first", "question-after")
        ),
    ]


def _of_types(name: str, length: int, tasks: tuple[str, ...], questions: int) -> Evaluation:
    """Of quantized caches."""
    budgets = (128, 512, 1024)
    return Evaluation(name, "smollm2", length, tasks, 8, questions, _THREE, budgets, _TYPES)


def _of_later_questions(
    name: str, model: str, length: int, tasks: tuple[str, ...], documents: int
) -> Evaluation:
    """Of policies that look at no question."""
    return Evaluation(name, model, length, tasks, documents, 3, _UNASKED, (128, 512))


# at 2K, where the least number of rows is half of the prompt
_BOTH = ("exact", "selective", "selective:least=256")
# after two to five of the six layers of needle, chosen after one look
_CURVE = tuple(
    Selective(share=share, least=256, depth=depth, settled=0).spec
    for depth in (0.3, 0.5, 0.6, 0.8)
    for share in (0.1, 0.2, 0.4)
)


def _selective(
    model: str, length: int, budget: int, policies: tuple[str, ...] = ("exact", "selective")
) -> list[Evaluation]:
    """Of selective prefills beside exact ones of the same budget: 60 questions, and other tasks."""
    name = f"selective-{model}-{length // 1024}k"
    others = ("needles", *_STRESS, *_TEXT)
    return [
        Evaluation(name, model, length, ("needle",), 20, 3, policies, (budget,)),
        Evaluation(f"{name}-others", model, length, others, 6, 2, policies, (budget,)),
    ]


def _recall(model: str, documents: int) -> Evaluation:
    """Of rows that come back while an answer is written: at once, as late as beside a GPU, by the index."""
    tasks = ("in-turn", "second-step", "question-after")
    policies = ("snapkv", "recall", "recall:delay=7", "recall:asked=384")
    named = f"recall-{model}-2k"
    return Evaluation(named, model, 2048, tasks, documents, policies=policies, budgets=(128, 512))


# those that take longest first
EVALUATIONS = (
    *_of_length(4096, "4k"),
    _of_types("eval-smollm2-4k-kv-types", 4096, ("needle",), 3),
    *_of_length(2048, "2k"),
    Evaluation(
        "eval-smollm2-2k-h2o",
        "smollm2",
        2048,
        ("needle",),
        policies=(*_FEW[:3], "h2o", "streaming"),
    ),
    _of_types("eval-smollm2-2k-kv-types", 2048, ("needle",), 3),
    _of_types("eval-smollm2-2k-kv-types-others", 2048, ("needles", "continue"), 2),
    Evaluation("eval-gemma3-2k-needle", "gemma3", 2048, ("needle",), 20, policies=_FEW),
    Evaluation(
        "eval-gemma3-2k-questions", "gemma3", 2048, ("needles", "question-first"), policies=_FEW
    ),
    Evaluation("eval-gemma3-2k-text", "gemma3", 2048, _TEXT, 12, 1, _FEW),
    Evaluation("eval-gemma3-4k-needle", "gemma3", 4096, ("needle",), policies=_FEW),
    Evaluation(
        "eval-smollm2-2k-needle-layers",
        "smollm2",
        2048,
        ("needle",),
        policies=(*_LAYERS, *_SHARED),
    ),
    Evaluation(
        "heads-needle-2k",
        "needle",
        2048,
        ("needle", "needles", "trace"),
        policies=(*_JOINT, "streaming"),
        budgets=(64, 128, 256),
    ),
    Evaluation(
        "heads-smollm2-2k", "smollm2", 2048, ("needle", "continue"), 4, 3, _JOINT, (64, 256)
    ),
    _of_later_questions("eval-smollm2-2k-question-free", "smollm2", 2048, ("question-after",), 12),
    _of_later_questions(
        "eval-smollm2-2k-question-free-first", "smollm2", 2048, ("question-first",), 8
    ),
    # to run on a CPU, where answers wait for recalls that name no delay
    _recall("needle", 3),
    _recall("smollm2", 4),
    *(
        evaluation
        for length in (131072, 65536, 32768, 16384)
        for evaluation in _selective("needle", length, 512)
    ),
    *_selective("smollm2", 4096, 512),
    *_selective("gemma3", 4096, 512),
    *_selective("smollm2", 2048, 256, _BOTH),
    *_selective("gemma3", 2048, 256, _BOTH),
    *_selective("needle", 8192, 512),
    *_selective("needle", 4096, 512),
    Evaluation(
        "selective-needle-8k-curve",
        "needle",
        8192,
        ("needle", "needles"),
        4,
        2,
        ("exact", *_CURVE),
        (512,),
    ),
    _of_later_questions(
        "eval-needle-4k-question-free", "needle", 4096, ("question-after", "question-first"), 12
    ),
)


def chosen(patterns: Sequence[str]) -> list[Evaluation]:
    """Those whose names match, with or without "eval-"; all without patterns."""
    return [
        e
        for e in EVALUATIONS
        if not patterns
        or any(fnmatch(n, p) for p in patterns for n in (e.name, e.name.removeprefix("eval-")))
    ]


def run(evaluation: Evaluation, model: str, out: Path, end: float, threads: int) -> bool:
    """One command, with its output in NAME.log. Returns whether it ended well, and says so."""
    begin = time.monotonic()
    if begin >= end:
        print(f"{evaluation.name}: not begun", flush=True)
        return False
    command = [sys.executable, "-m", "snapkv_local", *evaluation.arguments(model, out)]
    command += ["--threads", str(threads), "--minutes", f"{(end - begin) / 60:.3f}"]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    with (out / f"{evaluation.name}.log").open("w") as log:
        code = subprocess.run(command, cwd=ROOT, env=env, stdout=log, stderr=log).returncode
    took = f"{time.monotonic() - begin:.0f} s"
    print(f"{evaluation.name}: {took}" + (f", failed with {code}" if code else ""), flush=True)
    return code == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="of records; patterns such as 'gemma3-*'")
    parser.add_argument("--list", action="store_true", help="name them and measure nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    parser.add_argument("--smollm2", default="demo", help="the model's GGUF file")
    parser.add_argument(
        "--gemma3", help="the model's GGUF file; without it, its records are left out"
    )
    parser.add_argument("--minutes", type=float, default=1e6, help="after which no case is begun")
    parser.add_argument("--parallel", type=int, default=1, help="records at a time")
    args = parser.parse_args()
    models = {"smollm2": args.smollm2, "gemma3": args.gemma3, "needle": "needle"}
    found = [e for e in chosen(args.names) if args.list or models[e.model]]
    if args.list:
        print("\n".join(e.name for e in found))
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    threads = max(1, (os.cpu_count() or 1) // args.parallel)
    with ThreadPoolExecutor(args.parallel) as pool:
        went_well = pool.map(lambda e: run(e, models[e.model], args.out, end, threads), found)
        return 0 if all(list(went_well)) else 1


if __name__ == "__main__":
    sys.exit(main())
