"""The tables in README.md and docs/*.md, from the records in results/ and from SnapKVConfig.

    scripts/tables.py           # rewrite them
    scripts/tables.py --check   # fail if they differ

They stand between `<!-- table: NAME -->` and `<!-- end -->`. Without a record, a table says that nothing
is measured yet.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conversation_tables
import drafts_table
import former_table
import heads_table
import machine_tables
import many_table
import needle_tables
import quality_tables
import recall_table
import refit_table
import selective_table
import server_tables
import settings_table
import unasked_table
from snapkv_local.report.units import GIB, MIB
from table_parts import size, table

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"
RESULTS = ROOT / "results"

# of the check of kept sets
_KEPT = {
    "same_input": "against float64 with the same queries and keys",
    "f32_weights": "against the CPU with the weights in f32",
}

_MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(\n?<!-- end -->)", re.DOTALL)

Record = dict[str, Any]


def render(text: str, results: Path) -> str:
    """The text with its tables as the records give them.

    Raises:
        KeyError: a table of an unknown name.
    """
    return _MARKED.sub(lambda m: f"{m[1]}{TABLES[m[2]](results)}\n<!-- end -->", text)


def pages() -> list[Path]:
    """The files that may have tables."""
    return [README, *sorted(DOCS.glob("*.md"))]


def jaccard(results: Path) -> str:
    record = _load(results / "kvpress-jaccard.json")
    if record is None:
        return "Kept positions against kvpress are not measured yet."
    settings = record["settings"]
    machine = record["machine"]
    model = re.sub(r"-Instruct.*", "", settings["model"])
    return (
        f"With {model}, {settings['n_prompt']:,} tokens and a budget of {settings['budget']}, the "
        f"positions that are kept and those of kvpress {record['versions']['kvpress']} in float32 "
        f"have a mean Jaccard index of {record['jaccard_mean']:.3f}\n"
        f"(`tests/kvpress/compare.py`, on a {machine['cores']}-core CPU)."
    )


def cpu(results: Path) -> str:
    memory = _load(results / "memory-smollm2-8k.json")
    speed = _load(results / "speed-smollm2-8k.json")
    if memory is None or speed is None:
        return "Memory and speed on a CPU are not measured yet."
    settings, machine = memory["settings"], memory["machine"]
    by_mode = {run["mode"]: run for run in memory["runs"]}
    full = by_mode.pop("full")
    heads = {"1": "G = 1", "auto": "G = auto", "30": "all layers at once"}
    ours = [by_mode[mode] for mode in heads]
    rows = {
        "KV cache": (ours[0]["stats"]["bytes_kv_full"], "bytes_kv"),
        "KV of one layer group, during prefill": (None, "bytes_kv_group"),
        "hidden state, during prefill": (None, "bytes_hidden"),
        "mask, during prefill": (None, "bytes_mask"),
    }
    cells = [
        [label, size(of_full, MIB), *(size(run["stats"][name], MIB) for run in ours)]
        for label, (of_full, name) in rows.items()
    ]
    peaks = [size(run["peak_rss"], MIB) for run in (full, *ours)]
    cells.append(["peak memory of the process", *peaks])
    decode = speed["summary"]["decode_tokens_per_second"]
    prefill = speed["summary"]["seconds_prefill"]
    return "\n".join(
        [
            f"The model is {memory['model']}, with {settings['n_prompt']:,} prompt tokens and a budget "
            f"of {settings['budget']} ({machine['cpu']}, {machine['cores']} cores, without a GPU).\n",
            *table(["", "full cache", *heads.values()], cells),
            f"\nAt this length it decodes {decode['g1']:.1f} tokens/s, and {decode['full']:.1f} with the "
            f"full cache: {decode['ratio_of_medians']:.1f} times as many. Prefill with G = 1 takes "
            f"{prefill['ratio_of_medians']:.2f} times as long as plain prefill. These are medians of "
            f"{len(decode['ratios_of_pairs'])} alternating runs.",
        ]
    )


def gpu(results: Path) -> str:
    """A table for each device; a row has a case and, if it was measured, the full cache beside it."""
    tables = [_device(record) for record in _of_gpus(results)]
    return "\n\n".join(tables) or "GPUs are not measured yet."


def gpu_short(results: Path) -> str:
    """A row for each device that computed within 8 GiB, and one for each beside the full cache."""
    records = _of_gpus(results)
    cells = []
    for name in ("memory-8b-128k-cap8", "prefill-8b-128k", "prefill-8b-128k-g1"):
        for record in records:
            case = record["summary"].get(name)
            if case is not None:
                full = record["summary"].get(case["against"])
                cells.append([case["label"], record["device"]["name"], *_pairs(case, full)])
    if not cells:
        return "GPUs are not measured yet."
    return "\n".join(table(["", "GPU", *_PAIRS], cells))


def _of_gpus(results: Path) -> list[Record]:
    records = [json.loads(file.read_text()) for file in sorted(results.glob("gpu-*.json"))]
    return [record for record in records if record["runs"]]


_COLUMNS: dict[str, Callable[[Record], str]] = {
    "prefill, tokens/s": lambda case: f"{case['prefill_tokens_per_second']:,.0f}",
    "decode, tokens/s": lambda case: f"{case['decode_tokens_per_second']:.1f}",
    "device memory": lambda case: size(case["peak_device"], GIB),
}
_PAIRS = [head for column in _COLUMNS for head in (column, "full cache")]


def _pairs(case: Record | None, full: Record | None) -> list[str]:
    """Cells of all columns, with SnapKV and with the full cache; "-" is not measured."""
    return [
        "-" if side is None else cell(side) for cell in _COLUMNS.values() for side in (case, full)
    ]


def _device(record: Record) -> str:
    summary = record["summary"]
    compared = {case["against"] for case in summary.values()}
    cells = []
    for name, case in summary.items():
        if case["layer_group"] is not None:
            pair = _pairs(case, summary.get(case["against"]))
        elif name in compared:
            continue  # beside the one it is compared with
        else:
            pair = _pairs(None, case)
        cells.append([case["label"], str(case["layer_group"] or "-"), *pair])
    runs = record["runs"]
    commits = sorted({run["commit"][:9] for run in runs})
    types = sorted({(run["settings"]["weights"], run["settings"]["kv_type"]) for run in runs})
    lines = [
        f"{record['device']['name']}, with {' and '.join(f'{w} weights and {kv} KV' for w, kv in types)}. "
        f"8B and 7B are models of the shapes of Llama-3.1-8B and Llama-2-7B, with random weights. 128K is "
        f"131,072 tokens, with room for {runs[0]['settings']['decode_cells']} more. The budget is 2048 "
        f"where none is named. The figures are medians: decode is that of one sequence, device memory is "
        f"the peak, and G is the number of layers at once. Commit {', '.join(commits)}.\n",
        *table(["", "G", *_PAIRS], cells),
    ]
    kept = record["checks"].get("kept_sets", {})
    if "same_input" in kept:
        means = {name: kept[name]["jaccard_mean"] for name in (*_KEPT, "quantized_weights")}
        told = ", and ".join(f"{means[name]:.3f} {text}" for name, text in _KEPT.items())
        lines.append(
            f"\nThe kept positions on this device ({kept['model']}, {kept['prompt']}) have a mean Jaccard "
            f"index of {told}; with the weights as they are, it is {means['quantized_weights']:.3f}."
        )
    return "\n".join(lines)


def extract(results: Path) -> str:
    record = _load(results / "extract-smollm2.json")
    if record is None:
        return "`extract` against BM25 is not measured yet."
    settings, machine = record["settings"], record["machine"]
    passages = {case["passage"] for case in record["cases"]}
    units = {"sentence": "sentences", "function": "functions", "all": "all"}
    rows = []
    for row in record["summary"]:
        cells = [units[row["unit"]], row["questions"], str(row["n"])]
        for found in (row["first"], row["among first 5"]):
            low, high = (f"{100 * bound:+.0f}" for bound in found["interval_95"])
            cells += [f"{found['extract']:.0%}", f"{found['bm25']:.0%}", f"{low} to {high}"]
        rows.append(cells)
    head = ["passages", "question in", "n"]
    head += ["`extract` first", "BM25 first", "difference"]
    head += ["`extract` in first 5", "BM25 in first 5", "difference"]
    lines = [
        f"The model is {record['model']}, with {len(passages)} planted passages. Differences are 95 % "
        f"intervals in percentage points. Some of the texts are from the library of Python "
        f"{settings['python']} "
        f"({machine['cpu']}, {machine['cores']} cores; commit {record['commit'][:9]}).\n",
        *table(head, rows),
    ]
    return "\n".join(lines)


def _load(file: Path) -> Record | None:
    found: Record | None = json.loads(file.read_text()) if file.exists() else None
    return found


TABLES: dict[str, Callable[[Path], str]] = {
    "jaccard": jaccard,
    "cpu": cpu,
    "gpu": gpu,
    "gpu-short": gpu_short,
    "settings": settings_table.settings,
    "extract": extract,
    "questions": conversation_tables.questions,
    "needle-questions": conversation_tables.needle_questions,
    "endless": conversation_tables.endless,
    "drafts": drafts_table.drafts,
    "looks": drafts_table.looks,
    "heads": heads_table.heads,
    "many": many_table.many,
    "wheel": machine_tables.wheel,
    "vulkan": machine_tables.vulkan,
    "several": machine_tables.several,
    "ops": machine_tables.ops,
    "quality": quality_tables.short,
    "quality-former": former_table.former,
    "quality-again": former_table.again,
    "quality-bytes": quality_tables.by_bytes,
    "needle": needle_tables.by_length,
    "needle-share": needle_tables.share,
    "needle-tasks": needle_tables.by_task,
    "needle-rivals": needle_tables.rivals,
    "needle-h2o": needle_tables.h2o,
    "quality-all": quality_tables.everything,
    "unasked": unasked_table.unasked,
    "recall": recall_table.answers,
    "recall-cost": recall_table.cost,
    "recall-index": recall_table.index,
    "refit": refit_table.decoded,
    "refit-error": refit_table.errors,
    "selective": selective_table.speed,
    "selective-answers": selective_table.answers,
    "selective-curve": selective_table.curve,
    "server-speed": server_tables.speed,
    "server-one": server_tables.one,
    "server-lasting": server_tables.lasting,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if they differ")
    check = parser.parse_args().check
    differ = {}
    for page in pages():
        old = page.read_text(encoding="utf-8")
        new = render(old, RESULTS)
        if new != old:
            differ[page] = new
    if differ and check:
        names = ", ".join(str(page.relative_to(ROOT)) for page in differ)
        print(f"not the tables of results/: {names}; run `make tables`", file=sys.stderr)
        return 1
    for page, text in differ.items():
        page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
