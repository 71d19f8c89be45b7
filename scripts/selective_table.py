"""Tables of selective prefills: seconds to the first token, answers and CPU time, beside exact prefills."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from snapkv_local import policies
from snapkv_local.eval import show
from snapkv_local.policies.selective import Selective
from table_parts import commit, table, where

# of the same budget: timed, in newer records, or chosen from the full cache's vault
_EXACT = ("exact", "snapkv")

Rows = list[list[str]]


def speed(results: Path) -> str:
    """Seconds to the first token by the prompt's length, from records of measure/prefills.py."""
    found = [
        _speed(json.loads(f.read_text())) for f in sorted(results.glob("selective-?pu-*.json"))
    ]
    return "\n\n".join(found) or "The speed of selective prefills is not measured yet."


def answers(results: Path) -> str:
    """Exact answers and KL to the full cache, and how they differ; records of `snapkv-local eval`."""
    rows, sources = [], []
    files = [f for f in results.glob("selective-*-*k*.json") if not f.stem.endswith("-curve")]
    for file in sorted(files, key=_by_length):
        record = json.loads(file.read_text())
        rows += list(_answers(record))
        sources.append(f"`results/{file.name}` ({where(record)})")
    if not rows:
        return "Answers after selective prefills are not measured yet."
    head = ["model, task", "cases (documents)", "rows", "full cache", "exact prefill", "selective"]
    head += ["exact answers, selective less exact", "KL, the same", "CPU time"]
    said = (
        "Exact answers, KL to the full cache; differences in percentage points and nats, with 95 % intervals "
        "over documents; CPU time of the prefill as a share of the exact one's"
    )
    return "\n".join([*table(head, rows), "", f"{said}; {', '.join(sources)}."])


def curve(results: Path) -> str:
    """What depth and share cost and give, where rows are chosen after one look."""
    parts = []
    for file in sorted(results.glob("selective-*-curve.json")):
        record = json.loads(file.read_text())
        parts.append(_curve(record, f"`results/{file.name}` ({where(record)})"))
    return "\n\n".join(parts) or "Depth and share are not measured yet."


def _by_length(file: Path) -> tuple[str, int, str]:
    """Of names such as selective-needle-16k-others: model, thousands of tokens, and the rest."""
    model, length, *rest = file.stem.removeprefix("selective-").split("-")
    return model, int(length.removesuffix("k")), "-".join(rest)


def _answers(record: dict[str, Any]) -> Iterator[list[str]]:
    summary = [row for row in record["summary"] if row["length"]]
    cells = {(r["task"], r["length"], r["budget"], r["policy"]): r for r in summary}
    for (task, length, budget, policy), row in cells.items():
        if not _is_selective(policy):
            continue
        full = cells[task, length, None, "full"]
        base = next(
            cells[task, length, budget, p] for p in _EXACT if (task, length, budget, p) in cells
        )
        options = policy.partition(":")[2]
        named = f"{record['model']['name']}, `{task}`, {length // 1024}K"
        yield [
            f"{named}, `{options}`" if options else named,
            f"{row['n_cases']} ({row['n_documents']})",
            str(budget),
            *(_score(each) for each in (full, base, row)),
            _difference(row, "exact"),
            _difference(row, "kl"),
            _time(record, task, length, base["cell"], row["cell"]),
        ]


def _curve(record: dict[str, Any], source: str) -> str:
    # of all tasks, or of the only one that there is
    first = record["summary"][0]["task"]
    cells = {row["policy"]: row for row in record["summary"] if row["task"] == first}
    base = cells["exact"]
    seconds, _ = _prefills(record, base["cell"])
    rows: Rows = [["exact", "", f"{seconds:.1f} s", "100%", *_figures(base)]]
    chosen = [
        (policies.parse(p, policies.PREFILLS), row) for p, row in cells.items() if _is_selective(p)
    ]
    for policy, row in sorted(chosen, key=lambda pair: (pair[0].depth, pair[0].share)):  # type: ignore[attr-defined]
        assert isinstance(policy, Selective)
        seconds, figures = _prefills(record, row["cell"])
        rows.append(
            [
                f"{policy.depth:g}, after {figures[0]['n_layer_all']:.0f} layers",
                f"{policy.share:g}",
                f"{seconds:.1f} s",
                f"{sum(f['layer_work'] for f in figures) / len(figures):.0%}",
                *_figures(row),
            ]
        )
    head = [
        "depth",
        "share",
        "prefill, CPU",
        "layers' work",
        "exact answers",
        "KL",
        "exact answers, less exact's",
    ]
    n = f"{base['n_cases']} cases of {base['n_documents']} documents"
    tasks = [case["task"] for case in record["cases"].values()]
    lengths = ", ".join(f"{length // 1024}K" for length in record["settings"]["lengths"])
    named = ", ".join(f"`{task}`" for task in dict.fromkeys(tasks))
    said = f"{record['model']['name']}, {named}, {lengths}, {n}, {base['budget']} rows"
    if record["device"].get("kind") == "cpu":
        said += "; mean CPU seconds of a prefill"
    else:  # the process waits for the device for most of a prefill
        for line in (head, *rows):
            del line[2]
    return "\n".join([*table(head, rows), "", f"{said}; {source}."])


def _figures(row: dict[str, Any]) -> list[str]:
    scores = row["scores"]
    found = [show.mean("exact", scores["exact"]), show.mean("kl", scores["kl"])]
    return [*found, _difference(row, "exact") if row["against"] else "-"]


def _is_selective(policy: str) -> bool:
    return policy.partition(":")[0] == Selective.name


def _score(row: dict[str, Any]) -> str:
    exact, kl = row["scores"]["exact"], row["scores"]["kl"]
    return f"{show.mean('exact', exact)}, {show.mean('kl', kl)}"


def _difference(row: dict[str, Any], name: str) -> str:
    interval = row["against"][name]
    between = show.difference_between(name, interval)
    return show.difference(name, interval) + (f" ({between})" if between else "")


def _prefills(
    record: dict[str, Any], cell: str, task: str | None = None, length: int | None = None
) -> tuple[float, list[dict[str, float]]]:
    """Mean CPU seconds, and the figures of each case."""
    cases = [
        case
        for case in record["cases"].values()
        if task in (None, case["task"]) and length in (None, case["length"])
    ]
    found = [case["prefills"][cell] for case in cases if cell in case.get("prefills", {})]
    return sum(f["cpu_seconds"] for f in found) / max(1, len(found)), found


def _time(record: dict[str, Any], task: str, length: int, base: str, cell: str) -> str:
    if (record.get("device") or {}).get("kind") == "gpu":
        return "-"  # a processor that waits for a GPU says nothing
    (exact, timed), (ours, _) = (_prefills(record, c, task, length) for c in (base, cell))
    return f"{100 * ours / exact:.0f}%" if timed else "-"


def _speed(record: dict[str, Any]) -> str:
    runs = {(run["n_prompt"], run["way"]): run for run in record["runs"]}
    # records before measure/prefills.py have the device's name alone, and one run of each
    is_older = isinstance(record["device"], str)
    # where others compute beside it, a processor's clock says little
    key = "seconds" if is_older or record["device"]["kind"] == "gpu" else "cpu_seconds"
    rows = []
    for n in sorted({n for n, _ in runs}):
        plain, exact, ours = (runs[n, way] for way in ("plain", "exact", "selective"))
        stats = ours["stats"]
        vain = runs.get((n, "shipped"))  # where looks never agree
        looking = stats["seconds_select"] / ours.get("all_seconds", [ours["seconds"]])[-1]
        rows.append(
            [
                f"{n:,}",
                *(f"{run[key]:.1f} s" for run in (plain, exact, ours)),
                *(f"{run[key] / ours[key]:.2f}" for run in (plain, exact)),
                f"{stats['n_layer_all']}",
                f"{stats['n_selected']:,}",
                f"{looking:.0%}",
                f"+{vain[key] / exact[key] - 1:.0%}" if vain else "-",
            ]
        )
    head = ["prompt, tokens", "llama.cpp", "exact", "selective", "times as fast as llama.cpp"]
    head += ["as exact", "layers with all rows", "rows in the others", "of it looking ahead"]
    head += ["exact, after looks in vain"]
    source = (
        f"{record['device']}, one run each, commit {commit(record)}" if is_older else where(record)
    )
    if not is_older:
        source += f", medians of {len(record['runs'][0]['all_seconds'])}"
    told = "Seconds to the first token" if key == "seconds" else "CPU seconds to the first token"
    threads = f", {record['threads']} thread" if record.get("threads") == 1 else ""
    found = [*table(head, rows), "", f"{told}; {record['model']}, {source}{threads}."]
    return "\n".join(found)
