"""What people see: the progress bar, the line of figures, the tables."""

import dataclasses
import importlib
import io
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from rich.console import Console

from snapkv_local import PrefillStats
from snapkv_local.cli import main
from snapkv_local.cli.answer import Answer
from snapkv_local.cli.doctor import readable, show, state
from snapkv_local.cli.options import size_decode_cells
from snapkv_local.cli.progress import PrefillBar
from snapkv_local.llama.usage import Usage
from snapkv_local.stats import RecallStats

STATS = PrefillStats(
    n_prompt=8000,
    n_kept=512,
    n_cached=0,
    layer_group=1,
    n_ubatch=512,
    n_voters=16,
    n_after_voters=0,
    bytes_kv=30 * 2**20,
    bytes_recurrent=0,
    bytes_kept=11 * 2**20,
    bytes_kv_group=6 * 2**20,
    bytes_hidden=18 * 2**20,
    bytes_hidden_host=0,
    bytes_weights_lent=0,
    bytes_mask=9 * 2**20,
    bytes_vault=0,
    bytes_state=0,
    bytes_compute=50 * 2**20,
    bytes_kv_full=180 * 2**20,
    seconds_prefill=40.0,
    seconds_score=1.0,
    seconds_evict=0.5,
    ratio_fused=1.0,
    coverage=0.75,
)
ANSWER = Answer(
    text=" In the cellar. ",
    finish_reason="stop",
    n_prompt=8000,
    n_cached=0,
    n_kept=512,
    n_generated=5,
    n_drafted=0,
    n_accepted=0,
    n_looks=0,
    n_again=0,
    bytes_kv=30 * 2**20,
    bytes_decode_cells=19 * 2**20,
    bytes_kv_full=180 * 2**20,
    seconds_first_token=40.25,
    decode_tokens_per_second=45.5,
    peak_rss=400 * 2**20,
    prefill=STATS,
)


def test_the_line_of_figures():
    assert ANSWER.line() == (
        "kept 512 of 8,000 prompt tokens · KV 11.0 MiB of 180 MiB, and 19.0 MiB of room for new tokens · "
        "first token after 40.2 s · then 45.5 tokens/s"
    )


def test_the_line_of_an_answer_that_was_guessed():
    guessed = dataclasses.replace(ANSWER, n_drafted=2000, n_accepted=1500)
    assert guessed.line().endswith("tokens/s · 1,500 of 2,000 guessed tokens were right")
    again = dataclasses.replace(guessed, n_looks=500, n_again=700)
    assert again.line().endswith("were right · 700 tokens evaluated again for 500 looks")


def test_the_line_of_an_answer_with_recalls():
    recalls = [
        RecallStats(8000, 30, 7680, 0.02, 0.02, 0.001, 32_000, 0),
        RecallStats(8016, 12, 3072, 0.09, 0.01, 0.001, 32_064, 0),
    ]
    line = dataclasses.replace(ANSWER, recalls=recalls).line()
    assert line.endswith("tokens/s · 2 recalls of 42 rows, 16 ms each")


def test_the_line_of_a_prompt_that_was_kept_whole_compares_nothing():
    whole = dataclasses.replace(
        ANSWER, n_kept=8000, bytes_kv=2**20, bytes_decode_cells=0, prefill=None
    )
    assert whole.line().startswith("kept 8,000 of 8,000 prompt tokens · KV 1.0 MiB · first")


@pytest.mark.parametrize(
    ("n_prompt", "n_kept"), [(8000, 512), (8100, 612), (8600, 600), (9000, 1000)]
)
def test_rows_kept_in_later_turns_are_those_of_the_last_eviction_and_all_since(n_prompt, n_kept):
    eviction = dataclasses.replace(STATS, n_prompt=8512, n_kept=512)
    llm = SimpleNamespace(
        last_prefill=STATS,
        evictions=[eviction],
        n_prompt=n_prompt,
        n_tokens=n_prompt + 4,
        n_cached=0,
        n_drafted=0,
        n_accepted=0,
        n_looks=0,
        n_again=0,
    )
    assert Usage.of(llm).n_kept == n_kept


@pytest.mark.parametrize(
    ("settings", "max_tokens", "decode_cells"),
    [({}, 20, 20), ({}, 512, 512), ({}, 9000, 1024), ({"decode_cells": 700}, 20, 700)],
)
def test_room_is_sized_to_the_answer(settings, max_tokens, decode_cells):
    size_decode_cells(settings, max_tokens)
    assert settings["decode_cells"] == decode_cells
    size_decode_cells(None, max_tokens)  # --full


def test_the_line_of_an_answer_too_short_to_time():
    short = dataclasses.replace(ANSWER, decode_tokens_per_second=None)
    assert short.line().endswith("first token after 40.2 s")


@pytest.mark.parametrize(
    ("figures", "says"),
    [
        ({"ratio_fused": 0.0}, ["ggml's ops in 100% of the layers"]),
        ({"ratio_fused": 0.5}, ["ggml's ops in 50% of the layers"]),
        (
            {"bytes_hidden_host": 2**31, "bytes_weights_lent": 2**28},
            ["hidden state: 2.0 GiB in host memory", "lent weights: 256 MiB"],
        ),
        ({"layer_group": 0, "ratio_fused": 0.0}, []),  # nothing was evicted
    ],
    ids=lambda value: ",".join(value),
)
def test_the_line_says_what_is_unusual_and_no_more(figures, says):
    stats = dataclasses.replace(STATS, **figures)
    line = dataclasses.replace(ANSWER, prefill=stats).line()
    assert line == " · ".join([ANSWER.line(), *says])


def test_an_answer_goes_through_json():
    found = json.loads(json.dumps(ANSWER.to_dict()))
    assert PrefillStats(**found["prefill"]) == STATS
    assert {**found, "prefill": STATS} == {**vars(ANSWER)}


def bar(terminal: bool) -> tuple[PrefillBar, io.StringIO]:
    screen = io.StringIO()
    made = PrefillBar(SimpleNamespace(n_prompt=1000, prefill_progress=None))
    made.console = Console(file=screen, force_terminal=terminal, width=100)
    return made, screen


def test_the_bar_on_a_terminal_shows_tokens_and_goes_away():
    made, screen = bar(terminal=True)
    with made:
        made.llm.prefill_progress(256, 1000)
        assert made.progress is not None
        made.llm.prefill_progress(1000, 1000)
        assert made.progress is None
    assert "reading 1,000 tokens" in screen.getvalue()
    assert "tokens/s" in screen.getvalue()
    assert made.llm.prefill_progress is None


def test_the_bar_goes_away_on_ctrl_c():
    made, _ = bar(terminal=True)
    with pytest.raises(KeyboardInterrupt), made:
        made.llm.prefill_progress(256, 1000)
        raise KeyboardInterrupt
    assert made.progress is None
    assert made.llm.prefill_progress is None


def test_there_is_no_bar_in_a_pipe():
    made, screen = bar(terminal=False)
    with made:
        made.llm.prefill_progress(256, 1000)
    assert screen.getvalue() == ""


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("ram_total", 2**34, "16.0 GiB"),
        ("memory_free", 0, "0 B"),
        ("n_head_kv", (3, 3, 3), "3"),
        ("n_head_kv", (1, 4), "1, 4"),
        ("supported", True, "yes"),
        ("supported", False, "no"),
        ("reason", None, "-"),
        ("n_layer", 30, "30"),
        ("options", ["GGML_CPU", "GGML_CUDA"], "GGML_CPU GGML_CUDA"),
    ],
)
def test_values_for_people(key, value, text):
    assert readable(key, value) == text


def test_a_pipe_gets_whole_paths(monkeypatch, capsys):
    path = "/a/long/path" * 40
    monkeypatch.delenv("COLUMNS", raising=False)
    show({"model": {"file": path, "arch": "llama"}})
    assert path in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "60")  # as on a terminal: broken, and not cut
    show({"model": {"file": path, "arch": "llama"}})
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) == 60
    assert "".join(line[10:].strip() for line in lines[1:]).startswith(path)


PROVEN = SimpleNamespace(proven=True, checked=False, evidence="All tests.", state="proven")
CHECKED = SimpleNamespace(proven=False, checked=True, evidence="On one.", state="checked")
OTHER = SimpleNamespace(proven=False, checked=False, evidence="Never run.", state="refused")
REFUSED = "nobody has proven that results are right: "


@pytest.mark.parametrize(
    ("line", "has_fused", "tries", "found"),
    [
        (PROVEN, True, "", {"ops": "fused ops", "proven": True, "state": "proven"}),
        (PROVEN, False, "1", {"ops": "ggml's ops", "proven": True, "state": "proven"}),
        (CHECKED, False, "", {"ops": "ggml's ops", "proven": False, "state": "checked"}),
        (
            CHECKED,
            False,
            "2",
            {
                "ops": "ggml's ops",
                "proven": False,
                "warning": REFUSED + "tried whatever comes out",
            },
        ),
        (
            OTHER,
            False,
            "",
            {
                "ops": "ggml's ops",
                "proven": False,
                "warning": REFUSED
                + "refused; SNAPKV_UNPROVEN=1 tries it where a small model is exact",
            },
        ),
        (
            OTHER,
            True,
            "1",
            {
                "ops": "fused ops",
                "proven": False,
                "warning": REFUSED + "tried where a small model is exact",
            },
        ),
        (
            None,
            True,
            "2",
            {
                "ops": "fused ops",
                "proven": False,
                "warning": REFUSED + "tried whatever comes out",
            },
        ),
    ],
)
def test_doctor_says_which_ops_run_and_what_nobody_has_proven(
    line, has_fused, tries, found, monkeypatch
):
    monkeypatch.setenv("SNAPKV_UNPROVEN", tries)
    known = line.evidence if line else "its backend is in no line of the register"
    assert state(line, has_fused) == found | {"known": known}


@pytest.fixture
def demo(monkeypatch):
    """The module of `demo`, with the answers of its two processes given.

    A token is four characters. runs has each process's command and its document.
    """
    module = importlib.import_module("snapkv_local.cli.demo")
    tokens = SimpleNamespace(
        text=lambda text, *, begins: [0] * (len(text) // 4), llm=SimpleNamespace(close=lambda: None)
    )
    monkeypatch.setattr("snapkv_local.eval.tokens.open_tokens", lambda path: tokens)
    compressed = {**ANSWER.to_dict(), "text": f" The code is {module.VALUE}.\n"}
    full = {
        **compressed,
        "n_kept": 8000,
        "bytes_kv": 180 * 2**20,
        "bytes_decode_cells": 0,
        "text": "582",
    }
    module.runs = []

    def run(command, **_):
        (file,) = [Path(command[i + 1]) for i, word in enumerate(command) if word == "--file"]
        module.runs.append((command, file.read_text(encoding="utf-8")))
        answer = full if "--full" in command else compressed
        return subprocess.CompletedProcess(command, 0, json.dumps(answer))

    monkeypatch.setattr(module.subprocess, "run", run)
    return module


def test_the_demo_shows_both_answers_side_by_side_and_which_is_wrong(demo):
    result = CliRunner().invoke(main, ["demo", "--tokens", "1k"])
    assert result.exit_code == 0, result.output
    assert "It can do nothing else" in result.stdout
    assert f"Question: {demo.QUESTION}\n" in result.stdout
    assert f"Compressed: The code is {demo.VALUE}.\nFull cache: 582\n" in result.stdout
    assert result.stdout.count("That is wrong") == 1
    assert f"Full cache: 582\n    That is wrong: the document says {demo.VALUE}." in result.stdout
    (cache,) = [line for line in result.stdout.splitlines() if "KV cache" in line]
    assert "11.0 MiB" in cache and "180 MiB" in cache


def test_the_demo_in_json(demo):
    result = CliRunner().invoke(main, ["demo", "--tokens", "1k", "--threads", "1", "--json"])
    found = json.loads(result.stdout)
    assert (found["compressed"]["n_kept"], found["compressed"]["right"]) == (512, True)
    assert (found["full cache"]["n_kept"], found["full cache"]["right"]) == (8000, False)
    assert all(command[command.index("--threads") + 1] == "1" for command, _ in demo.runs)


def test_the_demo_has_one_fact_in_a_document_of_the_length(demo):
    CliRunner().invoke(main, ["demo", "--tokens", "2k"])
    (command, document), (_, same) = demo.runs
    assert document == same
    assert document.count(demo.FACT) == document.count(demo.VALUE) == 1
    assert 0.4 < document.index(demo.FACT) / len(document) < 0.9
    assert 2048 <= int(command[command.index("--ctx") + 1]) - demo.ROOM < 2048 + 1000
    assert demo.QUESTION in command and demo.VALUE not in demo.QUESTION


def test_a_demo_that_is_longer_than_the_manual(demo):
    result = CliRunner().invoke(main, ["demo", "--tokens", "1m"])
    assert result.exit_code == 1 and not demo.runs
    assert "--tokens 1,048,576: are more than Python's manual has" in result.stderr


def test_the_chat_demo(demo, monkeypatch):
    monkeypatch.setattr(demo, "demo_model", lambda: None)
    result = CliRunner().invoke(main, ["demo", "--chat"])
    assert "That is wrong: the document says 417." in result.stdout
    command, document = demo.runs[0]
    assert command[command.index("run") + 1] == "demo"
    assert "room 417" in document


def test_a_failure_within_the_demo_has_its_exit_code(demo, monkeypatch):
    failed = subprocess.CompletedProcess([], 130, "")
    monkeypatch.setattr(demo.subprocess, "run", lambda command, **_: failed)
    assert CliRunner().invoke(main, ["demo", "--tokens", "1k"]).exit_code == 130
