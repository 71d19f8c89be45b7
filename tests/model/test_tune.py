"""A small search: what it finds is what `run` then keeps."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from snapkv_local import SnapKVConfig, profile
from snapkv_local.cli import main


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, document: str) -> Path:
    path = tmp_path_factory.mktemp("tune") / "doc.txt"
    path.write_text(document[:3200], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def ran(file: Path) -> Result:
    command = [
        "tune", "needle", "--file", str(file), "--length", "300", "--minutes", "0.25", "--threads", "1",
        "--target-kl", "0.3", "--save", str(file.with_name("p.toml")), "--json",
    ]  # fmt: skip
    result = CliRunner().invoke(main, command, prog_name="snapkv-local")
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def report(ran: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def test_a_budget_is_found_and_tried_on_held_out_cases(report: dict[str, Any]) -> None:
    assert report["finished"]
    assert 64 <= report["settings"]["budget"] < report["n_prompt"] <= 300
    for half in ("tuning", "held_out"):
        assert report[half]["cases"] >= 2
    kl = {point["budget"]: point["kl"] for point in report["curve"]}
    assert kl[report["settings"]["budget"]] <= 0.3
    assert kl[min(kl)] > kl[max(kl)] > 0
    held_out = report["held_out_scores"][0]
    assert 0 < held_out["kl"] < 3
    assert set(held_out["kl_by_task"]) == {"continuation", "question"}


def test_run_takes_the_profile(report: dict[str, Any], file: Path) -> None:
    path = file.with_name("p.toml")
    assert profile.load(path).settings == report["settings"]
    SnapKVConfig(**profile.load(path).settings)
    question = ["--prompt", "What is this about?", "--max-tokens", "4", "--threads", "1", "--json"]
    command = ["run", "needle", "--file", str(file), "--ctx", "1k", "--profile", str(path)]

    result = CliRunner().invoke(main, [*command, *question])

    assert result.exit_code == 0, result.output
    assert "Warning" not in result.stderr
    assert json.loads(result.stdout)["n_kept"] == report["settings"]["budget"]
