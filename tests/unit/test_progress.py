"""Long commands without a terminal: lines on stderr of what is done and what is left."""

import io
import os
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from snapkv_local.cli.bench import Progress
from snapkv_local.cli.progress import CasesBar as EvalBar
from snapkv_local.cli.progress import Lines, PrefillBar
from snapkv_local.cli.tune import Bar as TuneBar
from snapkv_local.report import units


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Stream(io.StringIO):
    """Stderr that may be a terminal."""

    def __init__(self, is_terminal=False):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


def replaced(monkeypatch, is_terminal=False):
    """Stderr's stream from now on; pytest puts its own there when a test begins."""
    stream = Stream(is_terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


@pytest.fixture
def clock():
    return Clock()


def test_a_line_says_what_is_done_and_what_is_left(clock):
    lines = Lines("loading the model", clock=clock)
    clock.now += 7
    assert lines.line() == "loading the model: 7 s so far"
    lines.update("measuring", 0, 40, "0 of 40 cases")
    clock.now += 30
    assert lines.line() == "measuring: 0 of 40 cases, 30 s so far"
    lines.update("measuring", 10, 40, "10 of 40 cases")
    assert lines.line() == "measuring: 10 of 40 cases, 30 s so far, about 1 min 30 s left"
    clock.now += 20  # the eleventh case is on its way
    assert lines.line() == "measuring: 10 of 40 cases, 50 s so far, about 1 min 10 s left"
    clock.now += 3600
    assert lines.line().endswith("1 h 0 min so far, about 0 s left")


def test_what_was_done_before_takes_no_time(clock):
    """A download that goes on, or a record."""
    lines = Lines("", clock=clock)
    lines.update("downloading", 900, 1000, "900 of 1,000")
    clock.now += 10
    assert lines.line() == "downloading: 900 of 1,000, 10 s so far"
    lines.update("downloading", 950, 1000, "950 of 1,000")
    assert lines.line() == "downloading: 950 of 1,000, 10 s so far, about 10 s left"


@pytest.mark.parametrize(
    ("seconds", "says"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations(seconds, says):
    assert units.duration(seconds) == says


def wait_for(stream, text):
    deadline = time.monotonic() + 60
    while text not in stream.getvalue():
        assert time.monotonic() < deadline, stream.getvalue()
        time.sleep(0.01)


def test_lines_come_while_nothing_is_told(monkeypatch, clock):
    stderr = replaced(monkeypatch)
    with Lines("loading the model", clock=clock, every=0.02) as lines:
        wait_for(stderr, "loading the model: 0 s so far\n")
        lines.update("reading", 1, 2, "50%")
        wait_for(stderr, "reading: 50%, 0 s so far\n")
    written = stderr.getvalue()
    time.sleep(0.1)
    assert stderr.getvalue() == written


def test_a_terminal_gets_none(monkeypatch):
    stream = replaced(monkeypatch, is_terminal=True)
    with Lines("loading the model", every=0.01):
        time.sleep(0.1)
    assert stream.getvalue() == ""


def test_they_are_written_while_stderr_points_elsewhere(tmp_path):
    """As llama_cpp does it during a load."""
    code = (
        "import os, time; from snapkv_local.cli.progress import Lines\n"
        "with Lines('loading', every=0.05):\n"
        "    os.dup2(os.open(os.devnull, os.O_WRONLY), 2); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    said = process.stderr.readline()
    process.kill()
    process.communicate()
    assert re.fullmatch(r"loading: \d+ s so far\n", said)


def test_a_reader_that_is_gone_ends_the_lines_only():
    read, write = os.pipe()
    os.close(read)
    code = (
        "import time; from snapkv_local.cli.progress import Lines\n"
        "with Lines('loading', every=0.05): time.sleep(0.3)\n"
        "print('done')"
    )
    try:
        done = subprocess.run([sys.executable, "-c", code], stdout=-1, stderr=write, text=True)
    finally:
        os.close(write)
    assert done.stdout == "done\n"


def test_where_no_thread_can_be_had_the_command_goes_on(monkeypatch):
    stderr = replaced(monkeypatch)

    def start(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", start)
    with Lines("loading the model", every=0.01):
        pass
    assert stderr.getvalue() == ""


def test_a_prefill_and_an_answer_that_nobody_sees_yet(monkeypatch):
    stderr = replaced(monkeypatch)
    bar = PrefillBar(SimpleNamespace(n_prompt=2000, prefill_progress=None), "writing the document")
    bar.lines.every = 0.02
    with bar:
        wait_for(stderr, "reading the prompt: ")
        bar.llm.prefill_progress(1, 4)
        wait_for(stderr, "reading 2,000 tokens: 25%, ")
        bar.llm.prefill_progress(4, 4)
        wait_for(stderr, "writing the document: ")
        for _ in range(3):
            bar.said(512)
        wait_for(stderr, "answering: 3 of at most 512 tokens, ")


def test_eval_tune_and_bench_have_them(monkeypatch):
    stderr = replaced(monkeypatch)
    record = SimpleNamespace(data={"cases": {}})
    evaluation = SimpleNamespace(steps=lambda: [1, 2, 3], record=record)
    with fast(EvalBar(evaluation)) as bar:
        wait_for(stderr, "measuring: 0 of 3 cases, ")
        bar.done("f16", SimpleNamespace(id="needle-1"))
        wait_for(stderr, "measuring: 1 of 3 cases, the last needle-1, f16, ")
    with fast(TuneBar(90)) as bar:
        wait_for(stderr, "loading the model: ")
        bar.update("the budget", 1, 4)
        wait_for(stderr, "the budget: 1 of 4 cases, time box 1.5 min, ")
    with fast(Progress(6)) as bar:
        bar.before(SimpleNamespace(label="full cache, 4K"), 0)
        wait_for(stderr, "measuring: 0 of 6 runs, now full cache, 4K, ")


def fast(bar):
    bar.lines.every = 0.02
    return bar
