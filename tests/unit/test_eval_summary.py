"""Scores, means, intervals over documents, differences; and how they are shown."""

import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from snapkv_local.eval import page, plot, show, terminal
from snapkv_local.eval.scores import SCORES, Seen, measure
from snapkv_local.eval.summary import summarize

CELLS = {
    "full/f16": {"policy": "full", "budget": None, "kv_type": "f16"},
    "snapkv/64/f16": {"policy": "snapkv", "budget": 64, "kv_type": "f16"},
    "new/64/f16": {"policy": "new", "budget": 64, "kv_type": "f16"},
    "new/32/f16": {"policy": "new", "budget": 32, "kv_type": "f16"},
}
BYTES = {"full/f16": 1000, "snapkv/64/f16": 200, "new/64/f16": 200, "new/32/f16": 100}


def scores(value):
    return dict.fromkeys(SCORES, value)


def case(document, task="a", length=100, **values):
    names = {
        "full": "full/f16",
        "snapkv": "snapkv/64/f16",
        "new": "new/64/f16",
        "low": "new/32/f16",
    }
    return {
        "task": task,
        "length": length,
        "document": document,
        "bytes": {names[k]: BYTES[names[k]] for k in values},
        "scores": {names[k]: scores(v) for k, v in values.items()},
    }


def rows_of(*cases, against="snapkv"):
    data = {"cells": CELLS, "cases": dict(enumerate(cases))}
    return {(r["task"], r["cell"]): r for r in summarize(data, against)}


# scores


def test_scores_by_hand():
    full = np.log(np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]], np.float32)) + 3
    cell = np.log(np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]], np.float32)) - 5
    found = measure(Seen.of(cell, (0, 0)), Seen.of(full, (0, 0), is_full=True))
    kl = 0.7 * np.log(7 / 6) + 0.2 * np.log(2 / 3) + 0.5 * np.log(5 / 2) + 0.4 * np.log(4 / 7)
    assert found == {
        "exact": 0.0,
        "accuracy": 0.5,
        "nll": pytest.approx(-(np.log(0.6) + np.log(0.2)) / 2, abs=1e-5),
        "kl": pytest.approx(kl / 2, abs=1e-5),
        "top1": 0.5,
    }
    assert measure(Seen.of(cell, (0, 1)), Seen.of(full, (0, 1), is_full=True))["exact"] == 1


def test_logits_that_overflow_exp():
    logits = np.array([[500.0, 0, -500]], np.float32)
    seen = Seen.of(logits, (0,), is_full=True)
    assert measure(seen, seen)["nll"] == 0 and measure(seen, seen)["kl"] == 0


# means and intervals


def test_means_are_over_cases():
    rows = rows_of(
        case("d1", full=1.0, new=0.0), case("d1", full=1.0, new=1.0), case("d2", full=1.0, new=0.5)
    )
    row = rows["a", "new/64/f16"]
    assert row["scores"]["kl"][0] == 0.5
    assert (row["n_cases"], row["n_documents"], row["bytes"]) == (3, 2, 200)
    assert rows["a", "full/f16"]["scores"]["kl"] == [1.0, 1.0, 1.0]


def test_intervals_are_over_documents_and_not_over_cases():
    """Ten questions on a document tell no more than one if they all go as it goes."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=12)
    once = rows_of(*(case(f"d{i}", new=v) for i, v in enumerate(values)))
    often = rows_of(*(case(f"d{i}", new=v) for i, v in enumerate(values) for _ in range(10)))
    independent = rows_of(
        *(case(f"d{i}.{j}", new=v) for i, v in enumerate(values) for j in range(10))
    )

    def width(rows):
        _, low, high = rows["a", "new/64/f16"]["scores"]["kl"]
        return high - low

    assert width(often) == pytest.approx(width(once), rel=1e-6)
    assert width(independent) < width(once) / 2
    # the bootstrap's standard error is the population's
    assert width(once) == pytest.approx(2 * 1.96 * values.std() / np.sqrt(12), rel=0.15)


def test_differences_are_paired():
    rng = np.random.default_rng(2)
    values = rng.normal(size=10)
    rows = rows_of(*(case(f"d{i}", snapkv=v, new=v + 0.1) for i, v in enumerate(values)))
    mean, low, high = rows["a", "new/64/f16"]["against"]["kl"]
    assert (mean, low, high) == pytest.approx((0.1, 0.1, 0.1))
    assert rows["a", "new/64/f16"]["against"]["policy"] == "snapkv"
    assert rows["a", "snapkv/64/f16"]["against"] is None


def test_a_difference_needs_the_same_budget_and_case():
    rows = rows_of(case("d1", snapkv=1.0, new=3.0, low=5.0), case("d2", new=9.0))
    assert rows["a", "new/64/f16"]["scores"]["kl"][0] == 6.0
    assert rows["a", "new/64/f16"]["against"]["kl"] == [2.0, None, None]
    assert rows["a", "new/32/f16"]["against"] is None


def test_one_document_has_no_interval():
    rows = rows_of(case("d1", new=1.0), case("d1", new=2.0))
    assert rows["a", "new/64/f16"]["scores"]["kl"] == [1.5, None, None]


def test_groups_and_order():
    rows = rows_of(
        case("d1", new=1.0, full=0.0, low=2.0), case("d2", task="b", new=3.0), case("d3", length=200, new=5.0)
    )  # fmt: skip
    assert rows["all", "new/64/f16"]["scores"]["kl"][0] == 3.0
    data = {"cells": CELLS, "cases": dict(enumerate([case("d1", new=1, full=0, low=2)]))}
    assert [row["bytes"] for row in summarize(data, "snapkv")] == [100, 200, 1000]
    assert {task for task, _ in rows} == {"all", "a", "b"}
    assert ("b", "full/f16") not in rows
    assert summarize({"cells": CELLS, "cases": {}}, "snapkv") == []


# for people


def test_numbers():
    assert show.mean("exact", [0.834, 0.7, 0.9]) == "83%"
    assert show.between("exact", [0.834, 0.7, 0.9]) == "70..90"
    assert show.mean("kl", [0.3104, 0.25, 0.38]) == "0.310"
    assert show.between("kl", [0.31, 0.25, 0.38]) == "0.25..0.38"
    assert show.difference("exact", [0.04, -0.02, 0.09]) == "+4"
    assert show.difference_between("exact", [0.04, -0.02, 0.09]) == "-2..+9"
    assert show.difference("kl", [None, None, None]) == "-"
    assert show.between("kl", [0.3, None, None]) == ""


@pytest.mark.parametrize(
    ("name", "interval", "says"),
    [
        ("kl", [-0.1, -0.2, -0.05], "better"),
        ("kl", [0.1, 0.05, 0.2], "worse"),
        ("exact", [0.1, 0.05, 0.2], "better"),
        ("exact", [-0.1, -0.2, -0.05], "worse"),
        ("exact", [0.1, -0.05, 0.2], ""),
        ("kl", [0.0, 0.0, 0.0], ""),
        ("kl", [0.1, None, None], ""),
    ],
)
def test_a_difference_counts_where_its_interval_leaves_out_0(name, interval, says):
    assert show.verdict(name, interval) == says


@pytest.fixture(scope="module")
def summary():
    """Two tasks; the policy `new` is better by 0.25 in each case."""
    rng = np.random.default_rng(3)
    cases = [
        case(f"{task}{i}", task=task, full=0.0, snapkv=v, new=v - 0.25)
        for task in ("a", "b")
        for i, v in enumerate(rng.uniform(0.3, 0.9, 6))
    ]
    return summarize({"cells": CELLS, "cases": dict(enumerate(cases))}, "snapkv")


def test_tables(summary):
    out = io.StringIO()
    Console(file=out, width=80).print(terminal.tables(summary, "snapkv"))
    shown = out.getvalue()
    assert "all tasks: 12 cases, 12 documents" in shown
    assert "difference from snapkv" in " ".join(shown.split())
    assert "-0.250" in shown and "-0.25..-0.25" in shown
    assert "a 100" in shown and "b 100" in shown and "…" not in shown
    lines = [line for line in shown.splitlines() if "1000 B" in line]
    assert len(lines) == 1 and lines[0].split()[:4] == ["1000", "B", "full", "cache"]


def test_few_documents_are_said_to_be_few(summary):
    def shown(rows):
        out = io.StringIO()
        Console(file=out, width=80).print(terminal.tables(rows, "snapkv"))
        return out.getvalue()

    assert "intervals are rough" not in shown(summary)
    assert "intervals are rough" in shown([{**row, "n_documents": 9} for row in summary])


def test_plots_have_a_point_for_each_row(summary):
    rows = show.groups(summary)["all tasks"]
    series = plot.series_of(rows)
    assert [one.label for one in series] == ["full cache f16", "snapkv f16", "new f16"]
    for name in SCORES:
        root = ElementTree.fromstring(plot.svg(series, name))
        titles = [title.text for title in root.iter("title")]
        assert len(titles) == len(rows)
        assert any(title.startswith("new f16, 64 rows, 200 B: ") for title in titles)


def test_higher_scores_are_drawn_higher(summary):
    series = plot.series_of(show.groups(summary)["all tasks"])
    for name in ("exact", "kl"):
        root = ElementTree.fromstring(plot.svg(series, name))
        heights = [float(circle.get("cy")) for circle in root.iter("circle")]
        full, snapkv, new = heights
        assert full > new > snapkv  # SVG counts from the top, and these scores are 0, low, high


def test_many_policies_are_told_apart():
    rows = [{"policy": f"p{i}", "kv_type": "f16", "bytes": 1, "budget": 1} for i in range(15)]
    looks = {(one.colour, one.mark) for one in plot.series_of(rows)}
    assert len(looks) == 15 and all(colour in range(1, 8) for colour, _ in looks)


def test_page(summary):
    text = page.page(
        {
            "model": {"name": "<b>x</b>", "path": "x.gguf", "type": "q8_0"},
            "device": {"name": "a CPU"},
            "date": "2026-01-01",
            "version": "1",
            "commit": "abcdef",
            "against": "snapkv",
            "settings": {
                "tasks": {"a": {}, "b": {}}, "split": "test", "seed": 0, "window_size": 32,
                "protect_system": True,
            },
            "cases": {},
            "summary": summary,
        }
    )  # fmt: skip
    assert "<b>x</b>" not in text and "&lt;b&gt;x" in text
    assert re.findall(r"<h2>(.*?)</h2>", text) == ["all tasks", "By task", "a 100", "b 100"]
    assert text.count("<figure>") == 2 * 3
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"(src|href)=|url\(|@import|https?://", text)
    assert '<span class="better">-0.250</span>' in text
    assert "the system prompt, too" in text
