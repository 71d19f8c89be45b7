"""measure/quality.py: each record in results/ that the tables are made from has its command."""

from pathlib import Path

import pytest

import quality
import quality_tables
from snapkv_local import policies
from snapkv_local.cli.eval import evaluate

RESULTS = Path(__file__).parents[2] / "results"
NAMES = [e.name for e in quality.EVALUATIONS]


def test_all_records_of_the_tables_have_a_command():
    found = {
        file.stem
        for kind in ("eval-*", "heads-*", "recall-*-*k", "selective-*-*k*")
        for file in RESULTS.glob(f"{kind}.json")
    }
    assert sorted(NAMES) == sorted(found)


@pytest.mark.parametrize("evaluation", quality.EVALUATIONS, ids=NAMES)
def test_the_command_takes_the_arguments(evaluation, tmp_path):
    name, *arguments = evaluation.arguments("needle", tmp_path)
    taken = evaluate.make_context(name, arguments).params
    assert taken["out"] == tmp_path / f"{evaluation.name}.json"
    assert taken["lengths"] == (evaluation.length,) and taken["budgets"] == evaluation.budgets
    assert [policies.parse(p, policies.PREFILLS).spec for p in taken["policies"]] == list(
        evaluation.policies
    )


def test_the_short_tables_policies_are_measured():
    measured = {policy for e in quality.EVALUATIONS for policy in e.policies}
    assert measured >= {*quality_tables.SHORT, quality_tables.OURS}


def test_some_are_chosen_by_name():
    assert [e.name for e in quality.chosen(["gemma3-4k-*", "heads-needle-2k"])] == [
        "eval-gemma3-4k-needle",
        "heads-needle-2k",
    ]
    assert quality.chosen([]) == list(quality.EVALUATIONS) and quality.chosen(["x"]) == []


def test_what_would_begin_after_the_time_is_left_out(tmp_path, capsys):
    assert not quality.run(quality.EVALUATIONS[0], "needle", tmp_path, end=0, threads=1)
    assert capsys.readouterr().out == "eval-smollm2-4k-needle: not begun\n"
    assert not list(tmp_path.iterdir())
