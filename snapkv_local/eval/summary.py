"""Means over cases with intervals, and differences from a policy at the same budget.

Intervals are 95 % percentile bootstraps over documents: several questions on one document are no
independent cases.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from snapkv_local.eval.cell import Cell
from snapkv_local.eval.scores import SCORES

N_RESAMPLED = 2000
ALL = "all"

Floats = npt.NDArray[np.float64]
Row = dict[str, Any]


def summarize(data: dict[str, Any], against: str) -> list[Row]:
    """A row for each cell: of all cases, and of each task and length if there are several.

    Args:
        data: of a record.
        against: text of the policy that others are compared with; it need not be there.

    Returns:
        Rows with task, length, cell, bytes, n_cases, n_documents; scores: [mean, low, high] by
        name; against: the same of the difference, None where there is nothing to compare with. Low
        and high are None with fewer than two documents. Groups are in the order of the cases, rows
        in the order of bytes.
    """
    cases = list(data["cases"].values())
    cells = [Cell(c["policy"], c["budget"] or 0, c["kv_type"]) for c in data["cells"].values()]
    keys = dict.fromkeys((case["task"], case["length"]) for case in cases)
    groups = [((ALL, None), cases)] if cases else []
    if len(keys) > 1:
        for key in keys:
            groups.append((key, [c for c in cases if (c["task"], c["length"]) == key]))
    else:
        groups = [(key, cases) for key in keys]
    rows: list[Row] = []
    for (task, length), members in groups:
        found = _group(members, cells, against)
        found.sort(key=lambda row: row["bytes"])
        rows += [{"task": task, "length": length, **row} for row in found]
    return rows


def _group(cases: Sequence[dict[str, Any]], cells: Sequence[Cell], against: str) -> list[Row]:
    numbers = {name: i for i, name in enumerate(dict.fromkeys(c["document"] for c in cases))}
    documents = np.array([numbers[case["document"]] for case in cases])
    weights = _resampled(len(numbers))
    # [n_cases, n_cells, n_scores], nan where a cell is not done
    values = np.full((len(cases), len(cells), len(SCORES)), np.nan)
    for i, case in enumerate(cases):
        for j, cell in enumerate(cells):
            scores = case["scores"].get(cell.name)
            if scores is not None:
                values[i, j] = [scores[name] for name in SCORES]
    plain = _intervals(values, documents, weights)

    places = {cell: j for j, cell in enumerate(cells)}
    bases = [places.get(other) if (other := cell.against(against)) else None for cell in cells]
    differences = np.full_like(values, np.nan)
    for j, base in enumerate(bases):
        if base is not None:
            differences[:, j] = values[:, j] - values[:, base]
    paired = _intervals(differences, documents, weights)

    rows = []
    for j, cell in enumerate(cells):
        done = ~np.isnan(values[:, j, 0])
        if not done.any():
            continue
        held = [c["bytes"][cell.name] for c, is_done in zip(cases, done, strict=True) if is_done]
        is_paired = not np.isnan(differences[:, j, 0]).all()
        rows.append(
            {
                "cell": cell.name,
                **cell.to_dict(),
                "bytes": round(float(np.mean(held))),
                "n_cases": int(done.sum()),
                "n_documents": len(np.unique(documents[done])),
                "scores": _by_name(plain[j]),
                "against": {"policy": against, **_by_name(paired[j])} if is_paired else None,
            }
        )
    return rows


@functools.cache
def _resampled(n_documents: int) -> Floats:
    """[N_RESAMPLED, n_documents]: how often each document is in each sample; the same every time."""
    rng = np.random.default_rng(0)
    shares = np.full(n_documents, 1 / n_documents)
    return rng.multinomial(n_documents, shares, size=N_RESAMPLED).astype(np.float64)


def _intervals(values: Floats, documents: npt.NDArray[np.int64], weights: Floats) -> Floats:
    """[n_cells, n_scores, 3]: mean, low, high, of values [n_cases, n_cells, n_scores]; nan for none."""
    n_cells, n_scores = values.shape[1:]
    n_documents = weights.shape[1]
    is_done = ~np.isnan(values[:, :, 0])
    sums = np.zeros((n_documents, n_cells, n_scores))
    counts = np.zeros((n_documents, n_cells))
    np.add.at(sums, documents, np.nan_to_num(values))
    np.add.at(counts, documents, is_done)

    means = np.full((n_cells, n_scores, 3), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        means[:, :, 0] = sums.sum(0) / counts.sum(0)[:, None]
        # samples with none of a cell's documents are nan, and left out below
        of_samples = (weights @ sums.reshape(n_documents, -1)).reshape(-1, n_cells, n_scores)
        of_samples /= (weights @ counts)[:, :, None]
    for j in range(n_cells):
        if (counts[:, j] > 0).sum() < 2:
            continue
        valid = of_samples[~np.isnan(of_samples[:, j, 0]), j]
        means[j, :, 1:] = np.percentile(valid, [2.5, 97.5], axis=0).T
    return means


def _by_name(intervals: Floats) -> dict[str, list[float | None]]:
    return {
        name: [None if np.isnan(v) else round(float(v), 6) for v in intervals[i]]
        for i, name in enumerate(SCORES)
    }
