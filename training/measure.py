"""Held-out questions through the package: measure.py MODEL CASES.jsonl RECORD.json

Each question of held_out.py is asked by create_chat_completion at temperature 0; it is answered where the
answer stands as words of their own in what the model says. With the full cache a document is read once.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from snapkv_local import Llama, SnapKVConfig
from snapkv_local.bench import record as records
from snapkv_local.models.resolve import resolve

ROOT = Path(__file__).resolve().parent.parent


def config(text: str) -> SnapKVConfig | None:
    """Of "full", "snapkv:512", or "snapkv-paper:512"."""
    form, _, budget = text.partition(":")
    if form == "full":
        return None
    return (SnapKVConfig.paper if form == "snapkv-paper" else SnapKVConfig)(budget=int(budget))


def ask(llm: Llama, document: str, question: dict[str, Any]) -> dict[str, Any]:
    """What the model says, and is it right?"""
    text = f"{document}\n\n{question['words']}"
    done = llm.create_chat_completion(
        [{"role": "user", "content": text}], temperature=0, max_tokens=48
    )
    said = done["choices"][0]["message"]["content"].strip()
    wanted = re.escape(question["answer"].strip())
    is_right = re.search(rf"(?<!\w){wanted}(?!\w)", said) is not None
    return {"task": question["task"], "answer": question["answer"], "said": said, "is_right": is_right,
            "n_prompt": done["usage"]["prompt_tokens"]}  # fmt: skip


def measure(
    path: Path, cases: Sequence[dict[str, Any]], cell: str, tasks: set[str], threads: int
) -> list[dict[str, Any]]:
    """Answers to all questions of some tasks."""
    settings = config(cell)
    n_context = max(len(case["text"]) for case in cases) // 2 + 512
    llm = Llama(str(path), snapkv=settings, n_ctx=n_context, n_threads=threads, n_threads_batch=threads,
                verbose=False)  # fmt: skip
    answers = []
    for case in cases:
        for question in case["questions"]:
            if not tasks or question["task"] in tasks:
                answers.append({"length": case["length"], **ask(llm, case["text"], question)})
        llm.reset()
    llm.close()
    return answers


def main() -> None:
    """Measures, and writes the record after each cell."""
    arg = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arg.add_argument("model")
    arg.add_argument("cases", type=Path)
    arg.add_argument("record", type=Path)
    arg.add_argument("--cells", default="full", help="such as full,snapkv:512,snapkv-paper:128")
    arg.add_argument("--tasks", default="", help="all, if none are named")
    arg.add_argument(
        "--lengths", default="2000:4", help="of documents in CASES, and how many of each"
    )
    arg.add_argument("--threads", type=int, default=1)
    o = arg.parse_args()
    path = resolve(o.model)
    wanted = dict(tuple(map(int, part.split(":"))) for part in o.lengths.split(","))
    cases = []
    for line in o.cases.read_text("utf-8").splitlines():
        case = json.loads(line)
        if wanted.get(case["length"], 0) > 0:
            wanted[case["length"]] -= 1
            cases.append(case)
    cells: dict[str, Any] = {}
    for cell in o.cells.split(","):
        answers = measure(path, cases, cell, {t for t in o.tasks.split(",") if t}, o.threads)
        by_task: dict[str, list[int]] = {}
        for a in answers:
            counts = by_task.setdefault(f"{a['task']}, {a['length']}", [0, 0])
            counts[0] += a["is_right"]
            counts[1] += 1
        cells[cell] = {"right": by_task, "answers": answers}
        print(path.name, cell, {task: f"{r}/{n}" for task, (r, n) in by_task.items()}, flush=True)
        record = {"date": date.today().isoformat(), "commit": records.commit(ROOT),
                  "machine": records.machine(), "model": path.name, "cells": cells}  # fmt: skip
        records.write(o.record, record)


if __name__ == "__main__":
    main()
