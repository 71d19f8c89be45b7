"""`snapkv-local tune` around the search: usage, what is shown and written, Ctrl-C."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from snapkv_local import SnapKVConfig, profile
from snapkv_local.cli import main
from snapkv_local.eval.case import Case
from snapkv_local.llama.load_options import LoadOptions
from snapkv_local.policies.view import LayerView
from snapkv_local.tune import prepare
from snapkv_local.tune.documents import Document, Pieces

N_PROMPT = 400
N_HEAD_KV = 2


class FakeEngine:
    """The more rows are kept, the closer its logits are to those of all rows."""

    stop_after = None

    def __init__(self):
        self.n_scored = 0
        self.closed = False

    def prefill(self, tokens):
        self.n = self.n_kept = len(tokens)

    def prefill_with(self, tokens, budget, settings, view):
        self.prefill(tokens)
        self.n_kept = budget
        return SimpleNamespace(layer_work=1.0)

    def rewind(self):
        pass

    def select_rows(self, ids):
        self.n_kept = self.n if ids is None else ids[0].shape[1] + 16

    def layer_views(self):
        rng = np.random.default_rng(1)

        def made(n_head, n):
            return rng.normal(size=(n_head, n, 4)).astype(np.float32)

        return [
            LayerView(0, 1, made(4, 64), made(N_HEAD_KV, self.n), made(N_HEAD_KV, self.n), 1, 0)
        ]

    def logits_for(self, tokens, last):
        self.n_scored += 1
        if self.n_scored == self.stop_after:
            raise KeyboardInterrupt
        logits = np.linspace(0, 1, 10, dtype=np.float32) * (1 + 2 * (1 - self.n_kept / self.n))
        return np.tile(logits, (last, 1))

    def close(self):
        self.closed = True


def make_document(name):
    cases = tuple(
        Case(f"{name}/{task}", task, name, N_PROMPT, (i,) * N_PROMPT, (1,), (2, 3))
        for i, task in enumerate(("continuation", "question"))
    )
    return Document(name, cases)


@pytest.fixture
def fake(monkeypatch):
    """What prepare() was called with, and the engine."""
    calls = {"engine": FakeEngine()}

    def prepared(path, texts, loading, **options):
        calls.update(path=path, texts=texts, loading=loading, **options)
        return prepare.Prepared(
            pieces=Pieces(N_PROMPT, (make_document("a"),), (make_document("b"),)),
            open_engine=lambda: calls["engine"],
            model={"name": "Fake", "file": "m.gguf", "digest": "0123"},
            kv_type="q8_0",
        )

    monkeypatch.setattr(prepare, "prepare", prepared)
    monkeypatch.setattr("snapkv_local.models.resolve.check", lambda path: None)
    return calls


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "doc.txt"
    path.write_text("A document.\n")
    return path


def invoke(*arguments, **options):
    command = ["tune", "m.gguf", *map(str, arguments)]
    return CliRunner().invoke(main, command, prog_name="snapkv-local", **options)


def test_what_is_prepared(fake, file):
    result = invoke(
        "--file", file, "--file", "-", "--file", file, "--length", "1k", "--kv-type", "q8_0",
        "--gpu-layers", "3", "--threads", "2", "--no-mmap", "--chat-format", "chatml", input="Stdin.",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert str(fake.pop("path")) == "m.gguf"
    assert fake.pop("engine").closed
    assert fake == {
        "texts": [(str(file), "A document."), ("-", "Stdin.")],
        "length": 1024,
        "loading": LoadOptions(
            kv_type="q8_0", gpu_layers=3, threads=2, no_mmap=True, chat_format="chatml"
        ),
    }


def test_the_tables(fake, file):
    result = invoke("--file", file, "--target-kl", "0.02", env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    settings = " ".join(lines[:2])  # they take two lines
    assert (
        settings.startswith("--budget ")
        and "--window-size " in settings
        and "--n-sink " in settings
    )
    assert "Tuning: 2 cases of 1 document" in lines
    assert "Held out: 2 cases of 1 document" in lines
    budget = lines[0].split()[1]
    rows = [line.split() for line in lines]
    assert any(row[:1] == ["found"] and budget in row[1:4] for row in rows)
    assert max(len(line) for line in lines) <= 80
    assert "miss" not in result.stdout


def test_a_held_out_miss_is_said_and_saved(fake, file, tmp_path):
    """Prompts of the held-out document lose more."""
    engine, path = fake["engine"], tmp_path / "p.toml"
    prepared = prepare.prepare

    def with_other_prompts(*args, **options):
        found = prepared(*args, **options)
        cases = (replace(c, prompt=(9,) * N_PROMPT) for c in found.pieces.held_out[0].cases)
        held_out = (replace(found.pieces.held_out[0], cases=tuple(cases)),)
        return replace(found, pieces=replace(found.pieces, held_out=held_out))

    def prefill(tokens):
        engine.n = engine.n_kept = len(tokens)
        engine.loss = 8 if tokens[0] == 9 else 1

    def logits_for(tokens, last):
        factor = 1 + 2 * engine.loss * (1 - engine.n_kept / engine.n)
        return np.tile(np.linspace(0, 1, 10, dtype=np.float32) * factor, (last, 1))

    engine.prefill, engine.logits_for = prefill, logits_for
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "prepare", with_other_prompts)
        result = invoke("--file", file, "--target-kl", "0.02", "--save", path)
    assert result.exit_code == 0, result.output
    assert "Held-out documents miss the target: KL " in result.stdout
    assert profile.load(path).measured["held_out_reached"] is False


def test_json(fake, file):
    report = json.loads(invoke("--file", file, "--target-kl", "0.02", "--json").stdout)
    assert report["finished"] and report["kv_type"] == "q8_0"
    assert report["model"]["name"] == "Fake"
    curve = {point["budget"]: point["kl"] for point in report["curve"]}
    budget = report["settings"]["budget"]
    assert curve[budget] <= 0.02 < curve[max(b for b in curve if b < budget)]
    assert report["held_out_scores"][0]["kl"] == curve[budget]
    kinds = {row["policy"].partition(":")[0] for row in report["ways"]["tuning"]}
    assert kinds == {"exact", "selective", "recall"} and report["ways"]["reason"] is None
    assert report["ways"]["held_out"][0]["kl"] == report["held_out_scores"][0]["kl"]


def test_the_profile(fake, file, tmp_path):
    path = tmp_path / "new" / "p.toml"
    result = invoke("--file", file, "--target-kl", "0.02", "--save", path, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert f"Wrote {path}" in result.stderr
    found = profile.load(path)
    assert found.settings == report["settings"]
    assert SnapKVConfig(**found.settings).budget == report["settings"]["budget"]
    assert found.model == report["model"]
    assert found.measured["held_out_kl"] == report["held_out_scores"][0]["kl"]
    assert found.measured["held_out_cases"] == 2 and found.measured["finished"]
    assert dict(zip(found.measured["budgets"], found.measured["kl"], strict=True)) == {
        point["budget"]: point["kl"] for point in report["curve"]
    }
    assert found.date and found.version


def test_a_target_that_is_not_reached(fake, file, tmp_path):
    fake["engine"].score = lambda tokens, last, n=[0]: random_logits(tokens[-last:], n)
    result = invoke("--file", file, "--target-kl", "0.000001")
    assert result.exit_code == 0, result.output
    assert "reaches KL 1e-06" in result.stdout and "--target-kl" in result.stdout

    path = tmp_path / "p.toml"
    result = invoke("--file", file, "--target-kl", "0.000001", "--save", path)
    assert result.exit_code == 1
    assert "no budget reaches the target; give a higher --target-kl" in result.stderr
    assert not path.exists()


def random_logits(tokens, n):
    n[0] += 1
    return np.random.default_rng(n[0]).normal(size=(len(tokens), 10)).astype(np.float32)


def test_ctrl_c_before_a_budget_reaches_the_target(fake, file):
    fake["engine"].stop_after = 100
    result = invoke("--file", file, "--target-kl", "0.00001")
    assert result.exit_code == 130
    assert "No budget measured until now reaches KL 1e-05. The last one has" in result.stdout
    assert "higher" not in result.stdout


@pytest.mark.parametrize(("stop_after", "knows"), [(1, False), (3, False), (100, True)])
def test_ctrl_c_ends_with_what_is_known(fake, file, tmp_path, stop_after, knows):
    fake["engine"].stop_after = stop_after
    path = tmp_path / "p.toml"
    result = invoke("--file", file, "--target-kl", "0.1", "--save", path)
    assert result.exit_code == 130
    assert fake["engine"].closed
    assert result.stderr.endswith("Interrupted\n")
    assert path.exists() == knows
    if knows:
        assert "--budget" in result.stdout
        assert "Held-out documents were not measured." in result.stdout
        measured = profile.load(path).measured
        assert measured["finished"] is False and "held_out_kl" not in measured
    else:
        assert "Nothing is known yet." in result.stdout
        assert "is not written" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "give a document like yours with --file"),
        (("--file", "/no/such/file"), 2, "does not exist"),
        (("--target-kl", "0"), 2, "0"),
        (("--minutes", "-1"), 2, "-1"),
        (("--length", "many"), 2, "'many' is not a number of tokens"),
    ],
)
def test_usage(fake, arguments, code, says):
    result = invoke(*arguments)
    assert result.exit_code == code
    assert says in result.stderr and result.stdout == ""


def test_a_folder_to_save_to(fake, file, tmp_path):
    result = invoke("--file", file, "--save", tmp_path)
    assert result.exit_code == 2
    assert "directory" in result.stderr


def test_a_model_that_is_not_there(file):
    result = CliRunner().invoke(main, ["tune", "/no/such/model.gguf", "--file", str(file)])
    assert result.exit_code == 1
    assert "does not exist" in result.stderr
