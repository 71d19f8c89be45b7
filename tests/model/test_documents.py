"""Documents on the command line: made in one process, asked about in others."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "snapkv_local"]
ENGINE = ("--threads", "1", "--ctx", "1k")
SMALL = (
    *ENGINE,
    "--budget",
    "192",
    "--window-size",
    "16",
    "--decode-cells",
    "64",
    "--max-tokens",
    "24",
)
OFFICE = "What is the access code of the harbour office?"
HOUSE = "What is the access code of the boat house?"
FACTS = {
    OFFICE: ("The access code of the harbour office is 58213.", "58213"),
    HOUSE: ("The access code of the boat house is 40762.", "40762"),
}

Result = subprocess.CompletedProcess[str]


def run(*arguments: Any, stdin: str = "", **options: Any) -> Result:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=stdin, capture_output=True, text=True, timeout=120, **options,
    )  # fmt: skip


def start(*arguments: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory, document: str) -> Path:
    """About 500 tokens, with a fact for each question."""
    path = tmp_path_factory.mktemp("text") / "station.txt"
    first, second = (fact for fact, _ in FACTS.values())
    parts = document[:500], first, document[500:1000], second, document[1000:1500]
    path.write_text("\n\n".join(parts), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> dict[str, Any]:
    """What ingest says of the document that it has made."""
    path = tmp_path_factory.mktemp("documents") / "station.snapkv"
    result = run("ingest", "needle", "--file", text_file, "--out", path, *ENGINE, "--json")
    assert result.returncode == 0, result.stderr
    assert list(path.parent.iterdir()) == [path]
    found: dict[str, Any] = json.loads(result.stdout)
    assert (found["document"], found["title"]) == (str(path), "station.txt")
    assert found["n_bytes"] == path.stat().st_size
    assert found["kv_type"] == "f16"
    return found


@pytest.fixture(scope="module")
def book(made: dict[str, Any]) -> Path:
    return Path(made["document"])


def test_questions_are_answered_from_the_file(made: dict[str, Any], book: Path) -> None:
    result = run("ask", book, OFFICE, HOUSE, *SMALL, "--json")
    assert result.returncode == 0, result.stderr
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["question"] for answer in answers] == [OFFICE, HOUSE]
    for answer in answers:
        assert FACTS[answer["question"]][1] in answer["text"]
    for answer in answers:
        prefill = answer["prefill"]
        # of the document all but what is evaluated again, in the window of the question
        assert made["n_tokens"] - 64 <= prefill["n_cached"] <= made["n_tokens"]
        assert prefill["n_kept"] == 192 < answer["n_prompt"]
    # each by itself: alone, the second one gets the same answer
    alone = run("ask", book, HOUSE, *SMALL)
    assert alone.stdout == answers[1]["text"] + "\n"
    *lines, figures = alone.stderr.splitlines()
    assert figures.startswith("kept 192 of ") and all(" so far" in line for line in lines)


def test_run_goes_on_from_the_file(book: Path, text_file: Path) -> None:
    result = run("run", "--document", book, *SMALL, "--json", stdin=OFFICE)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert FACTS[OFFICE][1] in answer["text"]
    assert answer["prefill"]["n_cached"] > 300
    # as with the text itself, read anew
    plain = run("run", "needle", "--file", text_file, *SMALL, "--json", stdin=OFFICE)
    assert abs(json.loads(plain.stdout)["n_prompt"] - answer["n_prompt"]) <= 1


def test_other_text_may_follow_the_document(book: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.txt"
    more.write_text("The access code of the old ferry is 91346.")
    question = "What is the access code of the old ferry?"
    result = run("run", "--document", book, "--file", more, *SMALL, "--json", stdin=question)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert "91346" in answer["text"]
    assert answer["prefill"]["n_cached"] > 300


def test_two_processes_ask_at_once(book: Path) -> None:
    processes = [start("ask", book, question, *SMALL) for question in (OFFICE, HOUSE)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert FACTS[OFFICE][1] in outputs[0][0]
    assert FACTS[HOUSE][1] in outputs[1][0]


def test_a_document_of_another_model_is_refused(
    book: Path, model_path: str, tmp_path: Path
) -> None:
    other = tmp_path / "other.gguf"
    shutil.copyfile(model_path, other)
    named = run("ask", book, OFFICE, *SMALL, "--model", other)
    assert named.returncode == 0, named.stderr  # the same, at another place
    with other.open("r+b") as file:
        file.seek(-(2**20), os.SEEK_END)
        file.write(bytes(2**20))  # other weights
    refused = run("ask", book, OFFICE, *SMALL, "--model", other)
    assert refused.returncode == 1
    assert "or other weights of the name" in refused.stderr
    assert refused.stdout == ""


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--kv-type", "q8_0"), "has K and V in f16, and the cache is q8_0; use --kv-type f16"),
        (("--chat-format", "chatml"), "was made with another chat format; give the --chat-format"),
        (("--ctx", "256"), "raise --ctx"),
    ],
)
def test_a_document_of_other_settings_is_refused(
    book: Path, options: tuple[str, ...], says: str
) -> None:
    result = run("ask", book, OFFICE, *SMALL, *options)
    assert result.returncode == 1
    assert says in result.stderr
    assert result.stdout == ""


def test_a_damaged_document_is_refused(book: Path, tmp_path: Path) -> None:
    content = book.read_bytes()
    damaged = tmp_path / "damaged.snapkv"
    middle = len(content) // 2
    for wrong, says in [
        (content[:middle], "is truncated"),
        (content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :], "is damaged"),
        (b"Once upon a time", "is not a file of snapkv-local"),
    ]:
        damaged.write_bytes(wrong)
        result = run("ask", damaged, "--info")
        assert result.returncode == 1
        assert says in result.stderr
        assert result.stdout == ""
    shown = run("ask", book, "--info")
    assert shown.returncode == 0
    assert "station.txt" in shown.stdout


def ingest(text_file: Path, out: Path) -> "subprocess.Popen[str]":
    return start("ingest", "needle", "--file", text_file, "--out", out, *ENGINE, "--force")


def wait_for_a_file(folder: Path, process: "subprocess.Popen[str]") -> None:
    while not list(folder.iterdir()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)


def test_a_killed_ingest_leaves_no_document(text_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "book.snapkv"
    numbers = random.Random(4)
    for begun in (False, False, False, True, True, True):
        process = ingest(text_file, path)
        if begun:  # while the file is written
            wait_for_a_file(tmp_path, process)
            time.sleep(0.02 * numbers.random())
        else:  # while the model is loaded, while the text is read
            time.sleep(0.2 + numbers.random())
        process.kill()
        process.communicate()
        if path.exists():
            assert run("ask", path, "--info").returncode == 0
            path.unlink()

    process = ingest(text_file, path)
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == [path]
    assert run("ask", path, "--info").returncode == 0


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_while_a_text_is_read_leaves_nothing(document: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    text_file = tmp_path / "long.txt"
    text_file.write_text(document * 4, encoding="utf-8")
    process = start(
        "ingest", "needle", "--file", text_file, "--out", tmp_path / "out" / "x", "--threads", "1"
    )
    assert process.stderr is not None
    while "reading" not in (line := process.stderr.readline()):
        assert line, process.communicate()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in error
    assert list((tmp_path / "out").iterdir()) == []


def test_a_document_that_finds_no_space_leaves_the_old_one(
    book: Path, text_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "book.snapkv"
    shutil.copyfile(book, path)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))

    result = run(
        "ingest", "needle", "--file", text_file, "--out", path, *ENGINE, "--force", preexec_fn=limit
    )
    assert result.returncode == 1
    assert "finds no space" in result.stderr
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == book.read_bytes()
