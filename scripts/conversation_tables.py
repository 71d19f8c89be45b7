"""The tables of what comes after the first question: many questions to a document, and long answers."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from table_parts import table

Record = dict[str, Any]

EQUAL_CHUNKS = "vault, equal chunks"
WAYS = {
    "full": "full cache, question in the first one's place",
    "full turn": "full cache, after the first question and its answer",
    "one-shot": "rows kept for the first question, asked after it",
    "anew": "prefill anew",
    "vault": "vault",
    EQUAL_CHUNKS: "vault, from a place where a chunk ends",
    "document": "document's file, all questions",
}


def questions(results: Path) -> str:
    """Right answers and seconds by way of asking, and how far the vault is from prefills anew."""
    files = sorted(results.glob("questions-*.json"))
    tables = [_questions(json.loads(file.read_text())) for file in files]
    return "\n\n".join(tables) or "Many questions to one document: not measured yet."


def _questions(record: Record) -> str:
    settings, rows = record["settings"], record["rows"]
    # where a GPU computes, the process waits
    on_gpu = record.get("device", {}).get("backend", "CPU") != "CPU"
    clock, head_seconds = ("seconds", "seconds") if on_gpu else ("seconds_cpu", "CPU seconds")
    cells = [
        [
            WAYS[row["way"]],
            "all" if row["budget"] is None else str(row["budget"]),
            f"{row['right']} of {row['n']}",
            f"{row['kl_mean']:.2f}",
            f"{row['n_evaluated_median']:,.0f}",
            f"{row[f'{clock}_median']:.2f}",
        ]
        for row in rows
    ]
    head = ["", "budget", "right", "KL", "tokens computed", head_seconds]
    lines = [
        f"One document of {settings['n_prompt']:,} tokens with {settings['n_questions']} facts, "
        f"task `{settings['task']}`, one question for each. Tokens and {head_seconds} until the first "
        f"token of a later question can be chosen, medians. {_where(record)}\n",
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
        f"Budget {budget}, the vault against prefills anew: {statistics.median(ratios):.3f} times "
        f"the CPU seconds (at most {max(ratios):.3f}); {off['same_answer_tokens']:.0%} of the "
        f"answers' tokens are the same; kept sets have a Jaccard index of "
        f"{off['jaccard_mean']:.3f} (mean over layers and heads; least {off['jaccard_min']:.2f}), "
        f"logits differ by {off['logits_largest_difference_question']:.1f} at most after the "
        f"question and {off['logits_largest_difference_answer']:.1f} in the answer. Computed in "
        f"equal chunks: Jaccard {equal['jaccard_mean']:.3f} (least {equal['jaccard_min']:.2f}), "
        f"{equal['logits_largest_difference_question']:.1f} and "
        f"{equal['logits_largest_difference_answer']:.1f}."
    )


def endless(results: Path) -> str:
    """Speed at both ends of a long answer, evictions, and KL to the full cache between them."""
    record = _load(results / "endless-smollm2.json")
    if record is None:
        return "Answers beyond the cells: not measured yet."
    settings = record["settings"]
    config = settings["snapkv"]
    events = record["speed"][0]["cpu"]
    answer = next(run["completion"] for run in record["speed"] if "completion" in run)
    lines = [
        f"{settings['n_new']:,} tokens after {settings['n_prompt']:,}, budget {config['budget']}, "
        f"room {config['decode_cells']}; temperature {settings['temperature']}, no "
        f"{settings['n_repeated']} tokens in a row a second time. `create_completion()`: "
        f"{answer['completion_tokens']:,} tokens, finish_reason `{answer['finish_reason']}`, "
        f"{answer['n_evictions']} evictions. {_where(record)}\n",
        *table(
            ["seed", "evictions", "CPU seconds of each", *_SPEEDS],
            [_speed(run) for run in record["speed"]],
        ),
        "\nThe last three: tokens per second, of the first 500 tokens and of the last. By the clock, "
        f"other programs count too; evictions in these tokens: {events['first']['n_events']} and "
        f"{events['last']['n_events']}.",
    ]
    for text in record["quality"]:
        by_way = text["kl_by_stretch"]
        n = len(by_way["ours"])
        cells = [
            [way, *(f"{kl:.3f}" for kl in (statistics.fmean(kls), *kls))]
            for way, kls in by_way.items()
        ]
        told = [
            f"{pair.split(' / ')[0]} is nearer than the window in {found['n_nearer']} of {found['n']}"
            for pair, found in text["against"].items()
        ]
        head = ["KL to the full cache", "mean", *(str(i) for i in range(1, n + 1))]
        lines += [f"\nContinued by {text['continued by']}: {'; '.join(told)} stretches.\n"]
        lines += table(head, cells)
    return "\n".join(lines)


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


def _where(record: Record) -> str:
    machine, n = record["machine"], record["settings"]["threads"]
    return (
        f"{record['model']} ({machine['cpu']}, {machine['cores']} cores, {n} "
        f"{'thread' if n == 1 else 'threads'}; commit {record['commit'][:9]})."
    )


def _load(file: Path) -> Record | None:
    found: Record | None = json.loads(file.read_text()) if file.exists() else None
    return found
