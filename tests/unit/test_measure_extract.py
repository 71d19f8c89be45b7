"""The measurement of extract: its texts, and what it makes of ranks. No model is loaded."""

import json
from pathlib import Path

import pytest

pytest.importorskip("rank_bm25", reason="rank-bm25 is not installed")

import extract as measure_extract
import haystacks as extract_haystacks
import snapkv_local
from snapkv_local.extract.passages import cut

SETS = {"tuning": extract_haystacks.tuning(), "report": extract_haystacks.report()}
NAMES = {"sentence": "x.txt", "function": "x.py"}


def passages(name):
    return [passage for haystack in SETS[name] for passage in haystack.passages]


@pytest.mark.parametrize("name", SETS)
def test_each_passage_is_cut_out_whole_and_once(name):
    for haystack in SETS[name]:
        found = [haystack.text[a:b] for a, b in cut(haystack.text, "auto", NAMES[haystack.unit])]
        for passage in haystack.passages:
            assert found.count(passage.text.strip()) == 1


def test_texts_are_the_same_each_time():
    assert extract_haystacks.report() == SETS["report"]


def test_the_report_has_nothing_of_the_tuning():
    assert len(passages("report")) >= 40
    parts = {}
    for name, haystacks in SETS.items():
        cuts = [(h.text, cut(h.text, "auto", NAMES[h.unit])) for h in haystacks]
        parts[name] = {text[a:b] for text, places in cuts for a, b in places}
        parts[name] |= {query for p in passages(name) for query in p.questions.values()}
    assert not parts["tuning"] & parts["report"]


def test_nothing_is_from_the_demos_document():
    demo = Path(snapkv_local.__file__).parent / "demo" / "station.txt"
    text = demo.read_text(encoding="utf-8")
    told = {text[a:b] for a, b in cut(text, "sentence")}
    for haystack in SETS["report"]:
        assert not told & {haystack.text[a:b] for a, b in cut(haystack.text, "sentence")}


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([3, 2, 1], 1), ([1, 2, 3], 3), ([2, 2, 1], 1.5), ([0, 0, 0], 2), ([0, 0, 1], 2.5)],
)
def test_equals_share_the_middle_rank(scores, expected):
    assert measure_extract.rank(scores, 0) == expected


def case(unit, kind, extract, bm25):
    return {"unit": unit, "kind": kind, "ranks": {"extract": extract, "bm25": bm25}}


def test_a_summary_has_both_methods_and_the_interval_of_their_difference():
    cases = [case("sentence", "own words", 1, 1)] * 5
    cases += [case("sentence", "other words", 1, rank) for rank in (1, 2, 2, 10)]
    rows = {(row["unit"], row["questions"]): row for row in measure_extract.summary(cases)}
    assert rows["all", "own words"]["first"]["interval_95"] == [0, 0]
    other = rows["sentence", "other words"]
    assert other["n"] == 4
    assert other["first"] == {
        "extract": 1, "bm25": 0.25, "difference": 0.75, "interval_95": [0.25, 1],
    }  # fmt: skip
    assert other["among first 5"]["bm25"] == 0.75
    assert other["mean reciprocal rank"]["bm25"] == pytest.approx((1 + 0.5 + 0.5 + 0.1) / 4)


def test_the_record_is_of_the_report_and_adds_up():
    record = json.loads(measure_extract.RECORD.read_text(encoding="utf-8"))
    assert record["settings"]["set"] == "report"
    asked = [query for p in passages("report") for query in p.questions.values()]
    assert sorted(one["query"] for one in record["cases"]) == sorted(asked)
    assert record["summary"] == measure_extract.summary(record["cases"])
