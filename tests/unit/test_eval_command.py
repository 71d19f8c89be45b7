"""`snapkv-local eval` around the run: usage, what is refused early, what is written and shown."""

import json
import re
from dataclasses import asdict, replace

import pytest
from click.testing import CliRunner

from snapkv_local import SnapKVConfig
from snapkv_local.cli import main
from snapkv_local.eval import prepare, tasks
from snapkv_local.eval.case import Case
from snapkv_local.eval.record import Record
from snapkv_local.eval.scores import SCORES
from snapkv_local.llama.load_options import LoadOptions
from snapkv_local.policies.snapkv import SnapKV

STAMP = {
    "model": {"name": "fake", "path": "fake.gguf", "type": "f16"},
    "device": {"name": "a CPU"},
    "date": "2026-01-01",
    "version": "1",
    "commit": "abc",
}
CASES = [
    Case(f"needle/64/{i}/0", "needle", f"needle/64/{i}", 64, (1,) * 64, (2,), (3,)) for i in (0, 1)
]


def invoke(*arguments):
    return CliRunner().invoke(main, ["eval", *arguments], prog_name="snapkv-local")


class FakeEvaluation:
    """Gives every cell of a case the same scores."""

    def __init__(self, settings, policies, out, stop_after, seconds):
        self.settings, self.stop_after, self.seconds = settings, stop_after, seconds
        self.policies = {policy.spec: policy for policy in policies}
        self.record = Record.open(out, STAMP, settings, CASES)

    def steps(self):
        cells = self.settings.cells()
        return [("f16", case) for case in CASES if self.record.missing(case, cells)]

    def run(self, done, seconds):
        self.seconds.append(seconds)
        for i, (kv_type, case) in enumerate(self.steps()):
            if i == self.stop_after:
                raise KeyboardInterrupt
            for cell in self.settings.cells():
                n_bytes = 1024 * (cell.budget or len(case.prompt))
                self.record.add(case, cell, n_bytes, dict.fromkeys(SCORES, 0.25))
            self.record.save()
            done(kv_type, case)


@pytest.fixture
def fake(monkeypatch):
    """What prepare() was called with, and where the run is interrupted."""
    calls = {"stop_after": None, "seconds": []}

    def prepared(path, settings, policies, loading, *, out, note):
        calls.update(path=path, settings=settings, loading=loading, note=note)
        return FakeEvaluation(settings, policies, out, calls["stop_after"], calls["seconds"])

    monkeypatch.setattr(prepare, "prepare", prepared)
    monkeypatch.setattr("snapkv_local.models.resolve.check", lambda path: None)
    return calls


def test_settings_are_those_that_were_given(fake):
    result = invoke(
        "m.gguf", "--tasks", "needle,keys", "--lengths", "1k,2k", "--policies", "snapkv:kernel_size=7,random",
        "--budgets", "64,1k", "--cases", "3", "--questions", "2", "--seed", "5", "--split", "tune",
        "--depths", "4", "--kv-types", "q8_0", "--full-kv-types", "q4_0", "--window-size", "16",
        "--protect-system", "--threads", "2", "--note", "hi",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    settings = fake["settings"].to_dict()
    assert settings.pop("policies")[1] == "random" and len(fake["settings"].policies) == 2
    assert settings == {
        "tasks": {"needle": {}, "keys": {}},
        "lengths": [1024, 2048],
        "documents": 3,
        "questions": 2,
        "depths": 4,
        "seed": 5,
        "split": "tune",
        "budgets": [64, 1024],
        "kv_types": ["q8_0"],
        "full_kv_types": ["q4_0"],
        "window_size": 16,
        "protect_system": True,
        "snapkv": asdict(SnapKV()),
    }
    assert (fake["loading"], fake["note"]) == (LoadOptions(threads=2), "hi")


def test_the_table(fake):
    result = invoke("m.gguf", "--policies", "snapkv,random", "--budgets", "48")
    assert result.exit_code == 0
    assert "needle 64: 2 cases, 2 documents" in result.stdout
    lines = [line.split()[:4] for line in result.stdout.splitlines()]
    assert ["48.0", "KiB", "snapkv", "48"] in lines
    assert ["64.0", "KiB", "full", "cache"] in lines


def test_json_on_stdout(fake):
    result = invoke("m.gguf", "--json", "-")
    record = json.loads(result.stdout)
    assert len(record["cases"]) == 2 and record["summary"]
    assert record["against"] == "snapkv-paper"


def test_record_and_page(fake, tmp_path):
    out, html = tmp_path / "new" / "r.json", tmp_path / "new" / "p.html"
    result = invoke("m.gguf", "--json", str(out), "--html", str(html))
    assert result.exit_code == 0, result.output
    assert json.loads(out.read_text())["summary"]
    assert "<h2>needle 64</h2>" in html.read_text()
    assert "Δ KL" in result.stdout


def test_ctrl_c_keeps_what_is_done(fake, tmp_path):
    out = tmp_path / "r.json"
    fake["stop_after"] = 1
    result = invoke("m.gguf", "--json", str(out))
    assert result.exit_code == 130
    assert f"goes on from what {out} has" in result.stderr
    record = json.loads(out.read_text())
    assert len(record["cases"]) == 1 and record["summary"][0]["n_cases"] == 1

    fake["stop_after"] = None
    result = invoke("m.gguf", "--json", str(out))
    assert result.exit_code == 0
    assert "Going on with a record of 1 cases" in result.stderr
    assert len(json.loads(out.read_text())["cases"]) == 2


def test_a_time_box(fake, monkeypatch):
    result = invoke("m.gguf", "--minutes", "2")
    assert result.exit_code == 0 and "Stopped" not in result.stderr
    monkeypatch.setattr(FakeEvaluation, "run", lambda self, done, seconds: None)
    result = invoke("m.gguf", "--minutes", "0.1", "--json", "-")
    assert "Stopped after 0.1 minutes: 2 cases are left\n" in result.stderr
    assert json.loads(result.stdout)["cases"] == {}
    (left,) = fake["seconds"]
    assert 100 < left <= 120


def test_records_are_shown_again_without_a_model(fake, tmp_path):
    pytest.importorskip("matplotlib")
    one, other = tmp_path / "1.json", tmp_path / "2.json"
    first = invoke("m.gguf", "--policies", "snapkv", "--budgets", "48", "--json", str(one))
    invoke("m.gguf", "--policies", "random", "--budgets", "48", "--json", str(other))
    again = invoke("--from", str(one))
    assert again.exit_code == 0, again.output
    assert again.stdout == first.stdout
    html = tmp_path / "both.html"
    both = invoke("--from", str(one), "--from", str(other), "--html", str(html), "--json", "-")
    assert set(json.loads(both.stdout)["cells"]) == {"full/f16", "snapkv/48/f16", "random/48/f16"}
    assert "random" in html.read_text()


def test_a_record_of_a_run_that_was_killed_is_shown(fake, tmp_path):
    out = tmp_path / "r.json"
    first = invoke("m.gguf", "--policies", "snapkv,random", "--json", str(out))
    record = json.loads(out.read_text())
    del record["against"]
    out.write_text(json.dumps({**record, "summary": []}))
    assert invoke("--from", str(out)).stdout == first.stdout


@pytest.mark.parametrize("more", [["m.gguf"], ["--json", "new.json"]])
def test_records_that_are_shown_are_not_measured(fake, tmp_path, more):
    record = tmp_path / "r.json"
    invoke("m.gguf", "--json", str(record))
    result = invoke("--from", str(record), *more)
    assert result.exit_code == 2
    assert invoke().exit_code == 2


def test_another_evaluations_record(fake, tmp_path):
    out = tmp_path / "r.json"
    invoke("m.gguf", "--json", str(out))
    result = invoke("m.gguf", "--json", str(out), "--budgets", "100")
    assert result.exit_code == 1
    assert "is the record of another evaluation (budgets: " in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--tasks", "needel"), 1, "task 'needel': is not a task; choose from needle, "),
        (("--policies", "snapvk"), 1, "snapvk"),
        (("--policies", "snapkv:kernal=3"), 1, "kernal"),
        (("--budgets", "32"), 1, "budget 32: leaves no row to choose"),
        (("--budgets", "many"), 2, "'many' is not a number of tokens"),
        (("--kv-types", "f8"), 2, "'f8'"),
        (("--split", "train"), 2, "'train'"),
        (("--cases", "0"), 2, "0"),
        (("--against", "random", "--policies", "snapkv"), 2, "add it to --policies"),
    ],
)
def test_refused_before_the_model_is_looked_for(arguments, code, says):
    result = invoke("/no/such/model.gguf", *arguments)
    assert result.exit_code == code
    assert says in result.stderr
    assert result.stdout == ""


def test_a_model_that_is_not_there():
    result = invoke("/no/such/model.gguf")
    assert result.exit_code == 1
    assert "does not exist" in result.stderr


def test_a_file_that_is_malformed_is_refused_before_the_model_is_loaded(tmp_path, monkeypatch):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "x", "answer": "y"}\n{"prompt": \n')
    monkeypatch.setattr(prepare, "open_tokens", lambda *args: None)
    result = invoke("demo", "--tasks", f"jsonl:{path}")
    assert result.exit_code == 1
    assert "mine.jsonl, line 2: is not JSON" in result.stderr


def test_help_names_every_task():
    help = " ".join(invoke("--help").stdout.split())
    named = re.findall(
        r"[a-z-]+(?=,|\]|:FILE)", help[help.index("--tasks") : help.index("--policies")]
    )
    assert set(named) == {*tasks.TASKS, *tasks.files.KINDS}


def test_the_same_policy_twice_is_one(fake):
    invoke("m.gguf", "--policies", "snapkv,random,snapkv")
    assert len(fake["settings"].policies) == 2
    assert replace(fake["settings"]).cells()[0].name == "full/f16"


def test_the_default_is_measured_beside_the_papers_form(fake):
    assert SnapKVConfig().as_policy().spec == "snapkv"
    assert invoke("m.gguf").exit_code == 0
    assert fake["settings"].policies == ("snapkv-paper", "snapkv", "streaming", "random")
    result = invoke("m.gguf", "--policies", "random,default", "--against", "default")
    assert result.exit_code == 0, result.output
    assert fake["settings"].policies == ("random", "snapkv")
