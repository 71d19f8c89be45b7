"""What it gives to fit the values of kept rows anew: measured outside of the engine, for docs/quality.md.

    measure/refit.py needle                 # the package's own model, results/refit-needle-2k.json
    measure/refit.py demo --minutes 30      # SmolLM2, results/refit-smollm2-2k.json
    measure/refit.py FILE --lengths 4096 --out FILE

The prompt and its known answer are prefilled with all rows. The answer's queries in this cache are held out:
the error is that of their attention outputs over the kept rows, relative to the outputs over all rows, by
layer, root mean square over its heads; and the mean over layers. Some variants are decoded with, too: their
values are written into the vault, from which the engine fills its compact cache, and the answer's logits
are compared with those of the full cache, as `snapkv-local eval` does. Intervals are 95 % bootstraps over
documents, of differences to unchanged values of the same rows.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from refitting import Floats, Head, Ids, Rotation, Variant
from snapkv_local import SnapKVConfig
from snapkv_local.bench import record as records
from snapkv_local.eval import tasks
from snapkv_local.eval.case import Case
from snapkv_local.eval.scores import Seen, measure
from snapkv_local.eval.tokens import open_tokens
from snapkv_local.models.resolve import resolve
from snapkv_local.policies.snapkv import SnapKV
from snapkv_local.policies.view import LayerView, PromptView

if TYPE_CHECKING:
    from snapkv_local.llama.llama import Llama

ROOT = Path(__file__).resolve().parent.parent
RECORDS = {
    "needle": ROOT / "results" / "refit-needle-2k.json",
    "demo": ROOT / "results" / "refit-smollm2-2k.json",
}
TASKS = ("needle", "needles", "continue", "question-after")
WINDOW = SnapKVConfig.window_size
N_RESAMPLES = 2000

# decoded with
UNCHANGED = Variant("none")
DECODED = (
    Variant("window", 16, 0.1),
    Variant("window", 16, 1.0, by_vote=True),
    Variant("prompt", 1024, 0.1),
    Variant("prompt", 1024, 1.0, by_vote=True),
    Variant("merge"),
    Variant("answer", 0, 0.01),
)
# of which the error is taken alone
OTHERS = (
    *(Variant("window", n, ridge) for n in (16, 32, 64) for ridge in (0.01, 0.1, 1.0)),
    *(Variant("prompt", n, ridge) for n in (256, 1024) for ridge in (0.1, 1.0)),
)
VARIANTS = tuple(dict.fromkeys((UNCHANGED, *DECODED, *OTHERS)))

# of each layer and KV head, positions and values of its rows
Values = list[list[tuple[Ids, Floats]]]


def heads_of(layer: LayerView, n: int, rotation: Rotation) -> list[Head]:
    """The KV heads of a layer; the first n positions are the prompt's."""
    group = len(layer.q) // len(layer.k)
    return [
        Head(layer.q[h * group : (h + 1) * group], k, v, n, WINDOW, layer.scale, rotation)
        for h, (k, v) in enumerate(zip(layer.k, layer.v, strict=True))
    ]


@contextmanager
def written(llm: Llama, values: Values) -> Iterator[None]:
    """While open, the vault has these values instead of its own: float16, in memory."""
    from snapkv_local.native import vault

    segments = vault.segments(llm._context("written"))
    held = [[rows.copy() for rows in segment.v] for segment in segments]
    begin = 0
    for segment in segments:
        end = begin + len(segment.tokens)
        for rows, heads in zip(segment.v, values, strict=True):
            cells = rows.view(np.float16).reshape(end - begin, len(heads), -1)
            for h, (positions, of_head) in enumerate(heads):
                inside = (positions >= begin) & (positions < end)
                cells[positions[inside] - begin, h] = of_head[inside]
        begin = end
    try:
        yield
    finally:
        for segment, before in zip(segments, held, strict=True):
            for rows, old in zip(segment.v, before, strict=True):
                rows[:] = old


def measured(llm: Llama, case: Case, budgets: Sequence[int], rotation: Rotation) -> dict[str, Any]:
    """Errors and scores of one case, by budget and variant."""
    view = PromptView(len(case.prompt), WINDOW, question=case.question)
    after = [*case.after, *case.gold[:-1]]
    llm.prefill([*case.prompt, *after])
    layers = llm.layer_views()
    llm.prefill(case.prompt)
    full = Seen.of(llm.logits_for(after, len(case.gold)), case.gold, is_full=True)
    kept: dict[int, list[npt.NDArray[np.int32]]] = {budget: [] for budget in budgets}
    squares = {(b, v): np.zeros((len(layers), 2)) for b in budgets for v in VARIANTS}
    values: dict[tuple[int, Variant], Values] = {
        (b, v): [[] for _ in layers] for b in budgets for v in (UNCHANGED, *DECODED)
    }
    n = len(case.prompt)
    for i, layer in enumerate(layers):
        heads = heads_of(layer, n, rotation)
        of_prompt = replace(layer, q=layer.q[:, :n], k=layer.k[:, :n], v=layer.v[:, :n])
        for budget in budgets:
            ids = SnapKV().select(of_prompt, view, budget - WINDOW)
            kept[budget].append(ids)
            for variant in VARIANTS:
                for rows, head in zip(ids, heads, strict=True):
                    found = head.values(variant, rows)
                    squares[budget, variant][i] += head.error(rows, found)
                    if (budget, variant) in values:
                        values[budget, variant][i].append((head.rows(rows), found))
    errors: dict[str, dict[str, float]] = {str(budget): {} for budget in budgets}
    for (budget, variant), pair in squares.items():
        error = np.sqrt(pair[:, 0] / pair[:, 1]).mean()
        errors[str(budget)][variant.name] = round(float(error), 6)
    scores: dict[str, dict[str, dict[str, float]]] = {str(budget): {} for budget in budgets}
    for (budget, variant), chosen in values.items():
        with written(llm, chosen):
            llm.select_rows(kept[budget])
        seen = Seen.of(llm.logits_for(after, len(case.gold)), case.gold)
        scores[str(budget)][variant.name] = measure(seen, full)
    return {
        "id": case.id,
        "task": case.task,
        "document": case.document,
        "length": case.length,
        "errors": errors,
        "scores": scores,
    }


def summary(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each task, length, budget and variant: means, and differences to unchanged values."""
    rng = np.random.default_rng(0)
    rows = []
    for task, length in dict.fromkeys((case["task"], case["length"]) for case in cases):
        some = [case for case in cases if (case["task"], case["length"]) == (task, length)]
        documents = list(dict.fromkeys(case["document"] for case in some))
        of = np.array([documents.index(case["document"]) for case in some])
        drawn = rng.integers(len(documents), size=(N_RESAMPLES, len(documents)))
        # how often each case is in each sample
        counts = np.stack([np.bincount(d, minlength=len(documents)) for d in drawn])[:, of]
        for budget in some[0]["errors"]:
            for name in some[0]["errors"][budget]:
                row: dict[str, Any] = {"task": task, "length": length, "budget": int(budget)}
                row |= {"variant": name, "n_cases": len(some), "n_documents": len(documents)}
                error, before = (
                    np.array([c["errors"][budget][v] for c in some]) for v in (name, UNCHANGED.name)
                )
                row["error"] = round(float(error.mean()), 6)
                change = (counts @ error) / (counts @ before) - 1
                row["error_change"] = _with_interval(error.mean() / before.mean() - 1, change)
                if name in some[0]["scores"][budget]:
                    for score in ("kl", "exact"):
                        now, then = (
                            np.array([c["scores"][budget][v][score] for c in some])
                            for v in (name, UNCHANGED.name)
                        )
                        row[score] = round(float(now.mean()), 6)
                        change = (counts @ (now - then)) / counts.sum(axis=1)
                        row[f"{score}_change"] = _with_interval((now - then).mean(), change)
                rows.append(row)
    return rows


def _with_interval(mean: float, samples: npt.NDArray[np.float64]) -> list[float]:
    """[mean, low, high]."""
    return [round(float(x), 6) for x in (mean, *np.percentile(samples, [2.5, 97.5]))]


def opened(out: Path, fresh: dict[str, Any]) -> dict[str, Any]:
    """The record that the file holds, with a new stamp, or the fresh one.

    Raises:
        ValueError: the file's record is of other settings.
    """
    if not out.exists():
        return fresh
    held: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    if (held.get("model"), held.get("settings")) != (fresh["model"], fresh["settings"]):
        raise ValueError(
            f"{out} is a record of another model or of other settings: name another --out"
        )
    return {**fresh, "cases": held["cases"]}


def main() -> None:
    # only now: it loads the native library
    from snapkv_local.eval.anew import EvalLlama

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="needle, demo, or a GGUF file of the architecture llama")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(tasks.TASKS))
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048])
    parser.add_argument("--budgets", type=int, nargs="+", default=[64, 128, 512])
    parser.add_argument("--cases", type=int, default=8, help="documents of each task and length")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="then the record ends")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    out = args.out or RECORDS.get(args.model)
    if out is None:
        parser.error("name the record's file with --out")
    end = time.monotonic() + 60 * args.minutes

    path = resolve(args.model)
    rotation = Rotation.read(path)
    tokens = open_tokens(path)
    wanted = tasks.Wanted(lengths=tuple(args.lengths), n_documents=args.cases, n_questions=1)
    by_task = [list(tasks.get(name).cases(tokens, wanted)) for name in args.tasks]
    tokens.llm.close()
    # one of each task in turn, so that a record that ends early has some of all
    cases = [case for some in zip(*by_task, strict=True) for case in some]
    record = opened(
        out,
        {
            "kind": "refit",
            "format": records.FORMAT,
            "date": date.today().isoformat(),
            "commit": records.commit(ROOT),
            "machine": records.machine(),
            "model": path.name,
            "settings": {
                "tasks": args.tasks,
                "lengths": args.lengths,
                "budgets": args.budgets,
                "documents": args.cases,
                "window_size": WINDOW,
                "variants": [variant.name for variant in VARIANTS],
            },
            "summary": [],
            "cases": [],
        },
    )
    n_cells = max(len(case.prompt) + case.n_after for case in cases)
    llm = EvalLlama(
        str(path),
        snapkv=SnapKVConfig(
            budget=n_cells,
            window_size=WINDOW,
            decode_cells=max(case.n_after for case in cases),
            vault="ram",
        ),
        keep_queries=n_cells,
        n_ctx=n_cells + WINDOW,
        n_threads=args.threads,
        n_threads_batch=args.threads,
        verbose=False,
    )
    done = {case["id"] for case in record["cases"]}
    for case in cases:
        if time.monotonic() > end:
            break
        if case.id not in done:
            record["cases"].append(measured(llm, case, args.budgets, rotation))
            record["summary"] = summary(record["cases"])
            records.write(out, record)
            print(case.id, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
