"""What a prefill kept, seen through `inspect`."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from snapkv_local import SnapKVConfig
from snapkv_local.errors import PromptError
from snapkv_local.inspection import kept
from snapkv_local.prompt import template
from snapkv_local.prompt.build import build

QUESTION = "What is ready for a match? Ωß漢"
SMALL = [
    "--budget",
    "96",
    "--window-size",
    "32",
    "--decode-cells",
    "8",
    "--ctx",
    "1k",
    "--threads",
    "1",
]


@pytest.fixture(scope="module")
def text(document):
    return document[-1200:].strip() + " Naïve 漢字 😀."


@pytest.fixture
def small(llm):
    """The shared Llama with a window that holds the question; as it was afterwards."""
    before = llm.snapkv
    llm.set_snapkv(SnapKVConfig(budget=96, window_size=32, decode_cells=64))
    yield llm
    llm.set_snapkv(before)


@pytest.mark.parametrize("raw", [False, True])
def test_a_prompt_is_spelt_by_its_tokens(llm, text, raw):
    built = build(llm, text, QUESTION, raw)
    begin, end = built.document
    assert built.text[begin:end] == text
    assert built.text[begin:].startswith(f"{text}\n\n{QUESTION}")
    assert built.starts[0] == 0
    assert (np.diff(built.starts) >= 0).all()
    asked = built.text[built.starts[-built.n_question] :]
    assert asked.lstrip().startswith(QUESTION)
    first, stop = built.question
    assert first == len(built.tokens) - built.n_question
    assert built.text[built.starts[first] : built.ends()[stop - 1]].strip() == QUESTION
    assert built.ends()[built.system[1] - 1] == begin if built.system[1] else begin == 0
    if raw:
        assert built.text == f"{text}\n\n{QUESTION}"
    else:
        assert built.text.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_a_prompt_is_what_a_chat_evaluates(small, text):
    small.reset()
    small.create_chat_completion(
        [{"role": "user", "content": f"{text}\n\n{QUESTION}"}], max_tokens=1
    )
    built = build(small, text, QUESTION)
    assert small.n_prompt == len(built.tokens)
    assert small.input_ids[: small.n_prompt].tolist() == built.tokens


def test_a_survey_counts_the_kept_positions(small, text):
    built = build(small, text, QUESTION)
    survey = kept.take(small, built)
    positions = small.kept_positions()
    n_layer, n_head_kv, n_kept = positions.shape
    assert survey.counts.shape == (n_layer, len(built.tokens))
    assert survey.layers == tuple(range(n_layer))
    before = survey.counts[:, : -survey.window_size]
    assert (before.sum(axis=1) == n_head_kv * n_kept).all()
    assert (survey.counts[:, -survey.window_size :] == n_head_kv).all()
    assert before[3, positions[3, 1, 0]] >= 1
    assert survey.coverage.mean() == pytest.approx(survey.stats.coverage, abs=1e-5)
    assert survey.covers_question()


def test_a_prompt_within_the_budget_has_nothing_to_show(small):
    with pytest.raises(PromptError, match="fits the budget, so all of it is kept"):
        kept.take(small, build(small, "Short.", "What?"))


def test_a_format_that_asks_for_nothing_is_an_error():
    silent = SimpleNamespace(
        chat_format="silent", chat_handler=lambda **_: None, word=lambda asked: (asked, None)
    )
    with pytest.raises(PromptError, match="chat format silent: asks for no completion"):
        template.chat_tokens(silent, "x")


def test_a_template_that_changes_the_text_is_an_error(llm, monkeypatch):
    monkeypatch.setattr(
        "snapkv_local.prompt.build.chat_tokens", lambda llm, content: llm.tokenize(b"other")
    )
    with pytest.raises(PromptError, match="is not spelt by its tokens"):
        build(llm, "A document.", "What?")


def test_the_command(text, model_with_system, shape, tmp_path):
    file = tmp_path / "document.txt"
    file.write_text(text, encoding="utf-8")
    html = tmp_path / "new" / "heat.html"
    command = [sys.executable, "-m", "snapkv_local", "inspect", model_with_system]
    command += ["--file", str(file), "--prompt", QUESTION, *SMALL, "--html", str(html)]

    def run(*more):
        return subprocess.run([*command, *more], capture_output=True, text=True, timeout=300)

    result = run("--json", "--layer", "3")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["n_kept"], found["layer"]) == (96, 3)
    assert found["text"][found["document"][0] : found["document"][1]] == text
    assert np.shape(found["coverage_by_head"]) == (shape.n_layer, shape.n_head_kv[0])
    assert found["tokens"][-1]["share"] == 1
    assert "漢" in html.read_text(encoding="utf-8")

    piped = run()
    assert piped.returncode == 0, piped.stderr
    assert "\x1b" not in piped.stdout
    assert (
        f"Kept 96 of {found['n_prompt']} prompt tokens in each of {sum(shape.n_head_kv)} KV heads"
        in piped.stdout
    )

    # the question is known here, too
    chosen = json.loads(run("--json", "--policy", "question").stdout)
    kept = json.loads(run("--json", "--protect-system").stdout)
    assert [token["share"] for token in chosen["tokens"]] != [
        token["share"] for token in kept["tokens"]
    ]
    first = found["document"][0]
    system = [token["share"] for token in kept["tokens"] if token["end"] <= first]
    assert len(system) > 10
    assert set(system) == {1.0}

    html.unlink()
    refused = run("--layer", str(shape.n_layer))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert (
        f"layer {shape.n_layer}: has no cache that is compressed; give one of 0, 1, 2"
        in refused.stderr
    )
    assert not html.exists()
