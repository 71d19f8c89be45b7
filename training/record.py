"""Joins what runs of train.py and evaluate.py wrote: record.py RECORD.json RUN... [--device NAME]

RUN is a folder with log.jsonl and, after evaluate.py, answers.jsonl. The log is thinned to a line a stage and
half a minute.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path
from typing import Any

from snapkv_local.bench import record as records

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 30


def lines(file: Path) -> list[dict[str, Any]]:
    """Of a file of JSON lines; none where it is not there."""
    return (
        [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []
    )


def thinned(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last line of each half minute of a stage."""
    last = {(line["stage"], line["s"] // SECONDS): line for line in log}
    return list(last.values())


def right(documents: list[dict[str, Any]]) -> dict[str, dict[str, list[int]]]:
    """By length and task: right answers, and all."""
    found: dict[str, dict[str, list[int]]] = {}
    for document in documents:
        for answer in document["answers"]:
            by_task = found.setdefault(str(document["length"]), {})
            counts = by_task.setdefault(answer["task"], [0, 0])
            counts[0] += answer["is_right"]
            counts[1] += 1
    return found


def main() -> None:
    """Writes the record."""
    arg = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arg.add_argument("record", type=Path)
    arg.add_argument("runs", type=Path, nargs="+")
    arg.add_argument("--device", default="unknown", help="that trained")
    o = arg.parse_args()
    runs = []
    for folder in o.runs:
        documents = lines(folder / "answers.jsonl")
        runs.append({"log": thinned(lines(folder / "log.jsonl")), "held_out": right(documents)})
    record = {
        "date": date.today().isoformat(), "commit": records.commit(ROOT), "device": o.device, "runs": runs,
    }  # fmt: skip
    records.write(o.record, record)


if __name__ == "__main__":
    main()
