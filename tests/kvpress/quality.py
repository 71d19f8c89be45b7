"""Compare answers from this project's compressed caches with answers from kvpress's.

    python tests/kvpress/quality.py            # about 10 minutes after the first run's installation

compare.py compares the kept positions; this is what they are worth. Both sides get the same weights
(the demo GGUF, SmolLM2-135M-Instruct Q4_1), the same 24 prompts (`snapkv-local eval`'s task `needle`:
a city, a colour or a room number in about 2,000 tokens) and the paper's settings: window 32, average
pooling over 5. The prompt ends where the answer begins; the beginning of the answer is fed after the
compression, and then the answer's own tokens are predicted one by one, so that nothing counts that
came from full attention.

An answer is exact if each of its tokens is the most likely one. KL is from the same side's full cache,
mean over the answer's tokens. kvpress computes in float32; this project as it always does, with
quantized activations and an f16 cache: the full caches differ, too. kvpress's AdaKV gives the heads of
a layer different budgets, which it measures by masking; this project has none such.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from compare import HERE, ROOT, cpu_name, kvpress_python

from snapkv_local import Llama, SnapKVConfig, __version__
from snapkv_local.eval import tasks
from snapkv_local.eval.case import Case
from snapkv_local.eval.scores import Seen, measure
from snapkv_local.eval.tokens import open_tokens
from snapkv_local.models.resolve import resolve
from snapkv_local.policies import PromptView
from snapkv_local.policies.snapkv_paper import SnapKVPaper

N_UBATCH = 512

Scores = dict[str, dict[str, dict[str, float]]]  # case, cell, score


def make_cases(args: argparse.Namespace) -> list[Case]:
    wanted = tasks.Wanted(lengths=(args.n_prompt,), n_documents=args.documents)
    tokens = open_tokens(args.model)
    return list(tasks.get("needle").cases(tokens, wanted))


def snapkv_local_side(args: argparse.Namespace, cases: list[Case]) -> Scores:
    """This project's half."""
    policy = SnapKVPaper(kernel_size=args.kernel_size)
    longest = max(len(case.prompt) for case in cases)
    decode_cells = max(case.n_after for case in cases)
    llm = Llama(
        str(args.model),
        n_ctx=longest + decode_cells,
        n_ubatch=N_UBATCH,
        n_gpu_layers=0,
        n_threads=args.threads,
        n_threads_batch=args.threads,
        keep_queries=args.window_size,
        # cells for the whole prompt: the full cache is measured, too
        snapkv=SnapKVConfig(
            budget=longest, window_size=args.window_size, decode_cells=decode_cells, vault="ram"
        ),
        verbose=False,
    )
    found: Scores = {}
    for i, case in enumerate(cases):
        llm.prefill(list(case.prompt))
        full = answer(llm, case, is_full=True)
        cells = {"full": measure(full, full)}
        layers, prompt = llm.layer_views(), PromptView(len(case.prompt), args.window_size)
        for budget in args.budgets:
            ids = [policy.select(layer, prompt, budget - args.window_size) for layer in layers]
            llm.select_rows(ids)
            cells[f"snapkv-paper/{budget}"] = measure(answer(llm, case), full)
        found[case.id] = cells
        print(f"snapkv-local: {i + 1} of {len(cases)}", file=sys.stderr)
    llm.close()
    return found


def answer(llm: Llama, case: Case, is_full: bool = False) -> Seen:
    """What the cache predicts at the gold tokens."""
    logits = llm.logits_for([*case.after, *case.gold[:-1]])[-len(case.gold) :]
    return Seen.of(logits, case.gold, is_full)


def kvpress_side(args: argparse.Namespace, cases: list[Case]) -> dict[str, Any]:
    """kvpress_quality.py's record, see there."""
    python = kvpress_python(args.venv)
    given = {
        "cases": [
            {"id": c.id, "prompt": list(c.prompt), "after": list(c.after), "gold": list(c.gold)}
            for c in cases
        ],
        "budgets": args.budgets,
        "window_size": args.window_size,
        "kernel_size": args.kernel_size,
    }
    with tempfile.TemporaryDirectory() as folder:
        cases_file, out_file = Path(folder, "cases.json"), Path(folder, "scores.json")
        cases_file.write_text(json.dumps(given))
        command = [python, HERE / "kvpress_quality.py", "--model", args.model]
        command += ["--cases", cases_file, "--out", out_file, "--threads", str(args.threads)]
        # the model is a local file, so nothing is to be looked up
        quiet = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
        subprocess.run(command, check=True, env={**os.environ, **quiet}, stdout=sys.stderr)
        record: dict[str, Any] = json.loads(out_file.read_text())
        return record


def summarize(scores: Scores, cells: list[str]) -> dict[str, dict[str, float]]:
    """For each cell: exact answers, means of the others."""
    found = {}
    for cell in cells:
        rows = [case[cell] for case in scores.values()]
        found[cell] = {
            "exact": int(sum(row["exact"] for row in rows)),
            "kl": round(float(np.mean([row["kl"] for row in rows])), 4),
            "nll": round(float(np.mean([row["nll"] for row in rows])), 4),
        }
    return found


def make_record(
    args: argparse.Namespace, cases: list[Case], ours: Scores, theirs: dict[str, Any]
) -> dict[str, Any]:
    snapkv = ["full", *(f"snapkv-paper/{budget}" for budget in args.budgets)]
    adakv = [f"adakv/{budget}" for budget in args.budgets]
    their_scores: Scores = theirs["scores"]
    digest = hashlib.sha256("".join(case.digest() for case in cases).encode()).hexdigest()
    return {
        "n_cases": len(cases),
        "snapkv_local": summarize(ours, snapkv),
        "kvpress": summarize(their_scores, [*snapkv, *adakv]),
        # cases that one side answers exactly and the other does not: [ours only, theirs only]
        "differ": {
            cell: [
                sum(a[cell]["exact"] > b[cell]["exact"] for a, b in pairs(ours, their_scores)),
                sum(a[cell]["exact"] < b[cell]["exact"] for a, b in pairs(ours, their_scores)),
            ]
            for cell in snapkv
        },
        "settings": {
            "model": args.model.name,
            "task": "needle",
            "n_prompt": args.n_prompt,
            "documents": args.documents,
            "cases_sha256": digest,
            "budgets": args.budgets,
            "window_size": args.window_size,
            "kernel_size": args.kernel_size,
            "pooling": "avg",
            "n_ubatch": N_UBATCH,
            "kv_type": "f16",
        },
        "versions": {
            "python": platform.python_version(),
            "llama-cpp-python": version("llama-cpp-python"),
            "snapkv-local": __version__,
            **theirs["versions"],
        },
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "cases": {
            case.id: {"snapkv_local": ours[case.id], "kvpress": their_scores[case.id]}
            for case in cases
        },
    }


def pairs(
    ours: Scores, theirs: Scores
) -> list[tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]]:
    return [(ours[case], theirs[case]) for case in ours]


def print_table(record: dict[str, Any]) -> None:
    n = record["n_cases"]
    print(f"{'exact of ' + str(n) + ', KL':16}{'snapkv-local':>20}{'kvpress':>20}{'AdaKV':>20}")
    for cell in record["snapkv_local"]:
        columns = [
            record["snapkv_local"][cell],
            record["kvpress"][cell],
            record["kvpress"].get(cell.replace("snapkv-paper/", "adakv/"))
            if cell != "full"
            else None,
        ]
        texts = [f"{c['exact']:>3}  {c['kl']:.3f}" if c else "" for c in columns]
        print(f"{cell:16}" + "".join(f"{text:>20}" for text in texts))


def main() -> int:
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo", help="GGUF, llama architecture")
    parser.add_argument("--n-prompt", type=int, default=2048, help="tokens")
    parser.add_argument("--documents", type=int, default=8, help="of three questions each")
    parser.add_argument("--budgets", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--window-size", type=int, default=32, help="tokens")
    parser.add_argument("--kernel-size", type=int, default=5, help="tokens, odd")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--venv", type=Path, default=ROOT / "build" / "kvpress-venv")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "kvpress-quality.json")
    args = parser.parse_args()
    args.model = resolve(args.model).resolve()

    cases = make_cases(args)
    theirs = kvpress_side(args, cases)
    ours = snapkv_local_side(args, cases)
    record = make_record(args, cases, ours, theirs)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print_table(record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
