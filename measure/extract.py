"""Measure extract against BM25 on planted passages, and write results/extract-smollm2.json.

    measure/extract.py                          # the record, of the set `report`
    measure/extract.py --set tuning --out FILE  # the set that the formula was chosen by

Each passage is asked for in its own words, in few of them, and in others. A method's rank of it among all
passages of the text is 1 plus those that score higher plus half of the others that score the same. BM25 is
BM25Okapi of the package rank-bm25 with its defaults, on whole words in lower case, over the same passages.
Intervals are of the difference between the two: 95 % by bootstrap over the planted passages.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rank_bm25 import BM25Okapi

from haystacks import Haystack, report, tuning
from snapkv_local.bench import record as records
from snapkv_local.extract.passages import cut
from snapkv_local.extract.votes import CONFIG, NEUTRAL, Extractor
from snapkv_local.hardware import n_cores
from snapkv_local.models.resolve import demo_model

if TYPE_CHECKING:
    from snapkv_local.llama.llama import Llama

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "results" / "extract-smollm2.json"
SETS = {"report": report, "tuning": tuning}
N_CTX = 4096  # tokens; every text fits
N_RESAMPLES = 10_000
METHODS = ("extract", "bm25")
# what a rank is worth
FIGURES = {
    "first": lambda ranks: ranks <= 1,
    "among first 5": lambda ranks: ranks <= 5,
    "mean reciprocal rank": lambda ranks: 1 / ranks,
}


def words(text: str) -> list[str]:
    """Words and numbers, in lower case; names in code in their parts."""
    return re.findall(r"[a-z0-9]+", text.lower().replace("_", " "))


def rank(scores: npt.ArrayLike, i: int) -> float:
    """The rank of passage i, from 1; among equals the middle."""
    found = np.asarray(scores)
    return 1 + float((found > found[i]).sum()) + float((found == found[i]).sum() - 1) / 2


def measure(llm: Llama, haystack: Haystack) -> Iterator[dict[str, Any]]:
    """A case for each question: at which rank each method has its passage."""
    text = haystack.text
    ranges = cut(text, "auto", "x.py" if haystack.unit == "function" else "x.txt")
    found = [text[start:end] for start, end in ranges]
    extractor = Extractor(llm, [text], [ranges])
    bm25 = BM25Okapi([words(passage) for passage in found])
    for passage in haystack.passages:
        planted = found.index(passage.text.strip())
        for kind, query in passage.questions.items():
            scores = {(p.start, p.end): p.score for p in extractor.rank(query)}
            ranks = {
                "extract": rank([scores[place] for place in ranges], planted),
                "bm25": rank(bm25.get_scores(words(query)), planted),
            }
            print(haystack.name, kind, ranks, flush=True)
            yield {
                "haystack": haystack.name,
                "unit": haystack.unit,
                "n_passages": len(ranges),
                "depth": round(ranges[planted][0] / len(text), 3),
                "kind": kind,
                "query": query,
                "passage": passage.text,
                "ranks": ranks,
            }


def summary(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Figures of both methods and of their difference, by unit and kind of question."""
    units = list(dict.fromkeys(case["unit"] for case in cases))
    kinds = list(dict.fromkeys(case["kind"] for case in cases))
    rng = np.random.default_rng(0)
    rows = []
    for unit, kind in [*((u, k) for u in units for k in kinds), *(("all", k) for k in kinds)]:
        some = [
            case["ranks"]
            for case in cases
            if case["kind"] == kind and unit in (case["unit"], "all")
        ]
        ranks = {method: np.array([case[method] for case in some]) for method in METHODS}
        row: dict[str, Any] = {"unit": unit, "questions": kind, "n": len(some)}
        drawn = rng.integers(len(some), size=(N_RESAMPLES, len(some)))
        for name, worth in FIGURES.items():
            ours, theirs = (np.asarray(worth(ranks[m]), dtype=float) for m in METHODS)
            low, high = np.percentile((ours - theirs)[drawn].mean(axis=1), [2.5, 97.5])
            row[name] = {
                "extract": round(float(ours.mean()), 4),
                "bm25": round(float(theirs.mean()), 4),
                "difference": round(float((ours - theirs).mean()), 4),
                "interval_95": [round(float(low), 4), round(float(high), 4)],
            }
        rows.append(row)
    return rows


def main() -> None:
    # only now: it loads the native library
    from snapkv_local.llama.llama import Llama

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", choices=SETS, default="report")
    parser.add_argument("--out", type=Path, default=RECORD)
    args = parser.parse_args()
    if args.set != "report" and args.out == RECORD:
        parser.error("the record is of the set `report`: name another file with --out")
    cores = n_cores()
    commit = records.commit(ROOT)
    llm = Llama(
        str(demo_model()),
        snapkv=CONFIG,
        keep_scores=True,
        n_ctx=N_CTX,
        n_threads=cores,
        n_threads_batch=cores,
        verbose=False,
    )
    cases = [case for haystack in SETS[args.set]() for case in measure(llm, haystack)]
    found = {
        "date": date.today().isoformat(),
        "commit": commit,
        "machine": records.machine(),
        "model": "SmolLM2-135M-Instruct Q4_1",
        "settings": {
            "set": args.set,
            "n_ctx": N_CTX,
            "neutral_question": NEUTRAL,
            "resamples": N_RESAMPLES,
            "python": platform.python_version(),  # its library is a part of the texts
        },
        "summary": summary(cases),
        "cases": cases,
    }
    records.write(args.out, found)
    print(json.dumps(found["summary"], indent=1))


if __name__ == "__main__":
    main()
