"""A small evaluation from the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from snapkv_local.cli import main

ARGUMENTS = (
    "eval", "needle", "--tasks", "needle", "--lengths", "300", "--cases", "2", "--questions", "1",
    "--policies", "snapkv,random", "--budgets", "48,512", "--threads", "1",
)  # fmt: skip


def invoke(*more: str) -> Result:
    return CliRunner().invoke(main, [*ARGUMENTS, *more], prog_name="snapkv-local")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("eval")


@pytest.fixture(scope="module")
def ran(folder: Path) -> tuple[Result, dict[str, Any]]:
    result = invoke("--json", str(folder / "record.json"), "--html", str(folder / "page.html"))
    assert result.exit_code == 0, result.output
    return result, json.loads((folder / "record.json").read_text())


def test_every_cell_has_scores(ran: tuple[Result, dict[str, Any]]) -> None:
    _, record = ran
    assert len(record["cases"]) == 2
    for case in record["cases"].values():
        assert 280 < case["n_prompt"] <= 300
        assert set(case["scores"]) == {
            "full/f16", "snapkv/48/f16", "snapkv/512/f16", "random/48/f16", "random/512/f16",
        }  # fmt: skip


def test_a_budget_of_the_whole_prompt_is_the_full_cache(
    ran: tuple[Result, dict[str, Any]],
) -> None:
    for case in ran[1]["cases"].values():
        full = case["scores"]["full/f16"]
        assert full["kl"] == 0 and full["top1"] == 1
        for policy in ("snapkv", "random"):
            assert case["scores"][f"{policy}/512/f16"] == full
            assert case["bytes"][f"{policy}/512/f16"] == case["bytes"]["full/f16"]


def test_random_rows_are_worse_than_all_and_than_snapkvs(
    ran: tuple[Result, dict[str, Any]],
) -> None:
    kl = {row["cell"]: row["scores"]["kl"][0] for row in ran[1]["summary"]}
    assert kl["random/48/f16"] > 0.1 > kl["full/f16"]
    assert kl["random/48/f16"] > kl["snapkv/48/f16"]


def test_the_table_and_the_page(ran: tuple[Result, dict[str, Any]], folder: Path) -> None:
    result, record = ran
    assert "2 cases, 2 documents" in result.stdout
    assert "full cache" in result.stdout and "snapkv" in result.stdout
    # 6 layers of 2 heads, K and V of 64 elements of 2 bytes
    assert record["summary"][0]["bytes"] == 48 * 6 * 2 * 2 * 64 * 2
    assert "<figure>" in (folder / "page.html").read_text()


def test_a_record_that_is_whole_is_not_run_again(
    ran: tuple[Result, dict[str, Any]], folder: Path
) -> None:
    result = invoke("--json", str(folder / "record.json"))
    assert result.exit_code == 0, result.output
    assert "Going on with a record of 2 cases" in result.stderr
    again = json.loads((folder / "record.json").read_text())
    assert again["cases"] == ran[1]["cases"]
    assert again["seconds"] == ran[1]["seconds"]


def test_a_record_goes_on_where_it_stopped(
    ran: tuple[Result, dict[str, Any]], folder: Path
) -> None:
    half = json.loads((folder / "record.json").read_text())
    done, todo = half["cases"]
    del half["cases"][todo]
    half["cases"][done]["scores"]["full/f16"]["kl"] = 123.0  # shows that it is not made anew
    (folder / "half.json").write_text(json.dumps(half))

    result = invoke("--json", str(folder / "half.json"))

    assert result.exit_code == 0, result.output
    cases = json.loads((folder / "half.json").read_text())["cases"]
    assert cases[done]["scores"]["full/f16"]["kl"] == 123.0
    assert cases[todo]["scores"] == ran[1]["cases"][todo]["scores"]
