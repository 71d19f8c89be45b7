"""The tables of what comes after the first question: many questions to a document, and long answers."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from snapkv_local.config import SnapKVConfig
from snapkv_local.report.units import MIB
from table_parts import commit, size, table

Record = dict[str, Any]

EQUAL_CHUNKS = "vault, equal chunks"
WAYS = {
    "full": "full cache, question in the first one's place",
    "full turn": "full cache, after the first question and its answer",
    "one-shot": "rows kept for the first question, after it",
    "anew": "new prefill",
    "vault": "vault",
    EQUAL_CHUNKS: "vault, from a place where a chunk ends",
    "document": "the document's file, all questions",
}


def questions(results: Path) -> str:
    """Right answers and seconds by way of asking, and how far the vault is from new prefills."""
    return _of_files(results, "questions-smollm2-*.json")


def needle_questions(results: Path) -> str:
    """The same, of the needle model."""
    return _of_files(results, "questions-needle-*.json")


def _of_files(results: Path, names: str) -> str:
    tables = [_questions(json.loads(file.read_text())) for file in sorted(results.glob(names))]
    return "\n\n".join(tables) or "Many questions to one document are not measured yet."


def _questions(record: Record) -> str:
    settings, rows = record["settings"], record["rows"]
    # where a GPU computes, the process waits
    on_gpu = (record.get("device") or {}).get("backend", "CPU") != "CPU"
    has_bytes = all("bytes_kv" in row for row in rows)
    clock, head_seconds = ("seconds", "seconds") if on_gpu else ("seconds_cpu", "CPU seconds")
    cells = [
        [
            WAYS[row["way"]],
            "all" if row["budget"] is None else str(row["budget"]),
            f"{row['right']} of {row['n']}",
            f"{row['kl_mean']:.2f}",
            f"{row['n_evaluated_median']:,.0f}",
            f"{row[f'{clock}_median']:.{3 if on_gpu else 2}f}",
            *([size(row["bytes_kv"], MIB)] if has_bytes else []),
        ]
        for row in rows
    ]
    head = ["", "budget", "right", "KL", "tokens computed", head_seconds]
    head += ["KV of the sequence"] if has_bytes else []
    lines = [
        f"One document of {settings['n_prompt']:,} tokens holds {settings['n_questions']} facts of the "
        f"task `{settings['task']}`, and there is one question for each. Tokens and {head_seconds} are "
        f"what a later question takes until the first token of its answer can be chosen; these are "
        f"medians. {_where(record)}\n",
        *table(head, cells),
    ]
    by_way = {(row["way"], row["budget"]): row for row in rows}
    for budget in dict.fromkeys(row["budget"] for row in rows if row["way"] == EQUAL_CHUNKS):
        lines.append("\n" + _against_anew(by_way, budget))
    return "\n".join(lines)


def _against_anew(by_way: dict[tuple[str, int], Record], budget: int) -> str:
    row, equal = by_way["vault", budget], by_way[EQUAL_CHUNKS, budget]["against_anew"]
    off, ratios = row["against_anew"], row["seconds_cpu_ratios"]
    return (
        f"With a budget of {budget}, the vault takes {statistics.median(ratios):.3f} times the CPU "
        f"seconds of a new prefill (at most {max(ratios):.3f}). {off['same_answer_tokens']:.0%} of "
        f"the answers' tokens are the same. The kept sets have a Jaccard index of "
        f"{off['jaccard_mean']:.3f} (mean over layers and heads; the least is "
        f"{off['jaccard_min']:.2f}), and logits differ by "
        f"{off['logits_largest_difference_question']:.1f} at most after the question and by "
        f"{off['logits_largest_difference_answer']:.1f} in the answer. If both compute equal chunks, "
        f"the Jaccard index is {equal['jaccard_mean']:.3f} (the least is {equal['jaccard_min']:.2f}), "
        f"and logits differ by {equal['logits_largest_difference_question']:.1f} and "
        f"{equal['logits_largest_difference_answer']:.1f}."
    )


def endless(results: Path) -> str:
    """Speed at both ends of a long answer, evictions, and KL to the full cache between them."""
    record = _load(results / "endless-smollm2.json")
    if record is None:
        return "Answers beyond the cells are not measured yet."
    settings = record["settings"]
    config = settings["snapkv"]
    events = record["speed"][0]["cpu"]
    answer = next(run["completion"] for run in record["speed"] if "completion" in run)
    lines = [
        f"The model writes {settings['n_new']:,} tokens after {settings['n_prompt']:,}, with a budget of "
        f"{config['budget']} and room for {config['decode_cells']} tokens. The temperature is "
        f"{settings['temperature']}, and no {settings['n_repeated']} tokens in a row come a second time. "
        f"`create_completion()` gave {answer['completion_tokens']:,} tokens, with the finish_reason "
        f"`{answer['finish_reason']}` and {answer['n_evictions']} evictions. {_where(record)}\n",
        *table(
            ["seed", "evictions", "CPU seconds of each", *_SPEEDS],
            [_speed(run) for run in record["speed"]],
        ),
        "\nThe last three columns are tokens per second, of the first 500 tokens and of the last, and "
        "their ratio. By the clock, other programs count as well. In these tokens there were "
        f"{events['first']['n_events']} and {events['last']['n_events']} evictions.",
    ]
    for text in record["quality"]:
        author, by_way = text["continued by"], text["kl_by_stretch"]
        n = len(by_way["ours"])
        cells = [
            [way, *(f"{kl:.3f}" for kl in (statistics.fmean(kls), *kls))]
            for way, kls in by_way.items()
        ]
        told = [
            f"`{pair.split(' / ')[0]}` in {found['n_nearer']} of {found['n']}"
            for pair, found in text["against"].items()
        ]
        head = ["KL to the full cache", "mean", *(str(i) for i in range(1, n + 1))]
        lines += [
            f"\nThe text is continued by {_AUTHORS.get(author, author)}. Nearer to the full cache than the "
            f"sliding window are {' and '.join(told)} stretches.\n"
        ]
        lines += table(head, cells)
    return "\n".join(lines)


_AUTHORS = {"ours": "the model, with our cache"}

_SPEEDS = {
    "median": ("cpu", "tokens_per_second_median"),
    "fastest tenth": ("cpu", "tokens_per_second_90"),
    "by the clock, evictions counted": ("wall", "tokens_per_second_with_events"),
}


def _speed(run: Record) -> list[str]:
    cells = [str(run["seed"]), str(len(run["events"]))]
    cells.append(f"{statistics.median(run['seconds_cpu'][i] for i in run['events']):.2f}")
    for clock, name in _SPEEDS.values():
        parts = run[clock]
        first, last = (parts[part][name] for part in ("first", "last"))
        cells.append(f"{first:.1f}, {last:.1f} ({last / first:.2f})")
    return cells


def _earlier(record: Record) -> str:
    """Of a record with another pooling than the default's: which one; "" of others."""
    pooling = record["settings"]["snapkv"]["pooling"]
    return "" if pooling == SnapKVConfig.pooling else f"; an earlier default, `pooling` {pooling}"


def _where(record: Record) -> str:
    machine, n = record["machine"], record["settings"]["threads"]
    device = record.get("device") or {}
    if device.get("backend", "CPU") != "CPU":
        return f"{record['model']} ({device['name']}; commit {commit(record)}{_earlier(record)})."
    return (
        f"{record['model']} ({machine['cpu']}, {machine['cores']} cores, {n} "
        f"{'thread' if n == 1 else 'threads'}; commit {commit(record)}{_earlier(record)})."
    )


def _load(file: Path) -> Record | None:
    found: Record | None = json.loads(file.read_text()) if file.exists() else None
    return found
