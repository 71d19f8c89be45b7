"""What a recall finds by the vault's index of what it would find among all rows.

    measure/recall_index.py        # results/recall-index-*.json: needle at 16K, SmolLM2 at 2K

The task is `in-turn` of `snapkv-local eval`: an answer that names one fact after the other. Each case is
prefilled with a vault, and the answer's text decoded after it, with all rows asked and with fewer: `came` is
the share of the rows that came in with the first recall among all rows which came in by the index, too.

`forms` says why the index is what it is. The last four queries of a prompt that ends within the answer vote
for all rows, in float32, as an engine's recall does. Their best rows are the wanted ones; `rows` is the share
of them that an index of this form finds, `worth` that of their votes. "mean" is a stretch's mean key, "bound"
what Quest (arXiv 2406.10774) has, and "midway" the engine's: the mean key and a half of what the elements
range to from the middle.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from snapkv_local import SnapKVConfig
from snapkv_local.bench import record as records
from snapkv_local.eval.tasks.task import Wanted
from snapkv_local.eval.tasks.wander import TASKS
from snapkv_local.eval.tokens import open_tokens
from snapkv_local.models.resolve import demo_model, needle_model
from snapkv_local.policies.recall import Recall

ROOT = Path(__file__).resolve().parent.parent
MODELS = {"needle": (needle_model, 16_384), "smollm2": (demo_model, 2048)}
BUDGETS = (128, 512)
TIMES = (4, 8, 16)  # rows that are asked for one that is kept
N_QUERIES = 4
KERNEL = SnapKVConfig.kernel_size
STRETCH = 16
CASES = (3, 7)  # of the first document's ten


def joined(logits: Any, n_head: int) -> Any:
    """Votes of [n_head * N_QUERIES, n] logits: the most of a head's queries, mean over the heads."""
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    return shares.reshape(n_head, N_QUERIES, -1).max(1).mean(0)


def pooled(votes: Any) -> Any:
    """As SnapKVConfig's pooling "nosink" does it, with its self_weight."""
    others = votes.astype(np.float64)
    others[0] = 0
    sums = np.cumsum(np.pad(others, (KERNEL // 2 + 1, KERNEL // 2)))
    return (sums[KERNEL:] - sums[:-KERNEL]) / KERNEL + SnapKVConfig.self_weight * votes


def forms(view: Any, window: int) -> list[dict[str, Any]]:
    """Of one layer: what each form of the index finds, for each KV head."""
    n_kv, n, head_dim = view.k.shape
    n_head, n_stretches = len(view.q) // n_kv, n // STRETCH
    stretch_of = np.minimum(np.arange(n) // STRETCH, n_stretches - 1)
    rows = []
    for head in range(n_kv):
        q = view.q[head * n_head : (head + 1) * n_head, -N_QUERIES:].reshape(-1, head_dim)
        q = q.astype(np.float32) * view.scale
        k = view.k[head].astype(np.float32)
        exact = pooled(joined(q @ k.T, n_head))[: n - window]
        parts = k[: n_stretches * STRETCH].reshape(n_stretches, STRETCH, head_dim)
        mean = q @ parts.mean(1).T
        low, high = parts.min(1), parts.max(1)
        reach = np.abs(q) @ ((high - low) / 2).T
        bound = q @ ((low + high) / 2).T + reach
        for form, logits in (("mean", mean), ("bound", bound), ("midway", mean + reach / 2)):
            order = np.argsort(-joined(logits, n_head), kind="stable")
            for budget in BUDGETS:
                wanted = np.argsort(-exact, kind="stable")[: budget - window]
                for times in TIMES:
                    asked = np.zeros(n_stretches, bool)
                    asked[order[: -(-times * len(wanted) // STRETCH)]] = True
                    found = np.convolve(asked[stretch_of], np.ones(KERNEL), "same") > 0
                    worth = exact[wanted][found[wanted]].sum() / exact[wanted].sum()
                    rows.append((form, budget, times, found[wanted].mean(), worth))
    return rows


def came(llm: Any, config: SnapKVConfig, prompt: list[int], answer: list[int]) -> Any:
    """Rows that the first recall has brought, as sets for each layer and KV head."""
    llm.reset()
    llm.set_snapkv(config)
    llm.prefill(prompt)
    before = llm.kept_positions()
    llm.logits_for(answer[: config.recall_every])
    after = llm.kept_positions()
    shape = (-1, before.shape[-1])
    return [
        set(a) - set(b) for a, b in zip(after.reshape(shape), before.reshape(shape), strict=True)
    ]


def engine(llm: Any, config: SnapKVConfig, prompt: list[int], answer: list[int]) -> list[Any]:
    """Of one case: how many rows came in, and how many of them by the index, for each budget."""
    rows = []
    for budget in BUDGETS:
        wanted = replace(config, budget=budget, recall=True, recall_rows=0)
        best = came(llm, wanted, prompt, answer)
        for times in TIMES:
            n_asked = times * (budget - config.window_size)
            found = came(llm, replace(wanted, recall_rows=n_asked), prompt, answer)
            both = sum(len(a & b) for a, b in zip(best, found, strict=True))
            rows.append((budget, times, sum(map(len, best)), both))
    return rows


def measure(name: str, threads: int) -> dict[str, Any]:
    """One model's record."""
    # only now: it loads the native library
    from snapkv_local.llama.llama import Llama

    find, length = MODELS[name]
    tokens = open_tokens(find(), None)
    cases = list(TASKS[0].cases(tokens, Wanted(lengths=(length,), n_documents=1)))
    config = SnapKVConfig(
        budget=BUDGETS[-1], vault="ram", decode_cells=256, recall_every=Recall.every
    )
    llm = Llama(
        str(find()),
        snapkv=config,
        n_ctx=length + 512,
        n_batch=512,
        n_ubatch=512,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    of_forms, of_engine = [], []
    for case in (cases[i] for i in CASES):
        prompt, said = list(case.prompt), list(case.after)
        of_engine += engine(llm, config, prompt, said)
        llm.reset()
        llm.set_snapkv(config)
        llm.prefill([*prompt, *said])
        for view in llm.layer_views():
            of_forms += forms(view, config.window_size)
        print(f"{name}: {case.id}", file=sys.stderr, flush=True)
    found: dict[str, Any] = {"n_prompt": length, "n_cases": len(CASES), "engine": [], "forms": []}
    for budget, times in sorted({row[:2] for row in of_engine}):
        counts = np.sum([row[2:] for row in of_engine if row[:2] == (budget, times)], axis=0)
        row = {"budget": budget, "times": times, "n_came": int(counts[0])}
        found["engine"].append({**row, "came": round(float(counts[1] / counts[0]), 4)})
    for form, budget, times in sorted({row[:3] for row in of_forms}):
        means = np.mean([r[3:] for r in of_forms if r[:3] == (form, budget, times)], axis=0)
        row = {"form": form, "budget": budget, "times": times}
        shares = {"rows": round(float(means[0]), 4), "worth": round(float(means[1]), 4)}
        found["forms"].append({**row, **shares})
    return {"model": find().name, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help=", ".join(MODELS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    args = parser.parse_args()
    if unknown := set(args.models) - set(MODELS):
        parser.error(f"there is no model {', '.join(sorted(unknown))}")
    for name in args.models or MODELS:
        found = {
            "kind": "recall-index",
            "date": date.today().isoformat(),
            "commit": records.commit(ROOT),
            "machine": records.machine(),
            **measure(name, args.threads),
        }
        records.write(args.out / f"recall-index-{name}.json", found)
        print(found["engine"], file=sys.stderr)


if __name__ == "__main__":
    main()
