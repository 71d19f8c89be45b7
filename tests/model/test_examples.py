"""The examples run, on a short part of the demo's document."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
QUESTION = "In which room does the cooling pump stand?"


@pytest.fixture
def run(tmp_path, document):
    """Runs an example on the beginning of the document: a few more tokens than drop_in.py keeps."""
    file = tmp_path / "station.txt"
    file.write_text(document[:3600], encoding="utf-8")

    def run(name, model, *options):
        command = [sys.executable, str(EXAMPLES / name), model, str(file), QUESTION, *options]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


def test_ask_a_document(run):
    options = ("--budget", "256", "--ctx", "2048", "--max-tokens", "8")
    *answer, figures = run("ask_a_document.py", "needle", *options).splitlines()
    assert "".join(answer).strip()
    assert figures.startswith("kept 256 of ")
    assert "KV cache" in figures


def test_drop_in(run, model_path):
    *answer, usage = run("drop_in.py", model_path).splitlines()
    assert "".join(answer).strip()
    assert "'prompt_tokens': " in usage


def test_drop_in_differs_from_llama_cpp_by_its_import_and_one_argument():
    lines = (EXAMPLES / "drop_in.py").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if "snapkv" in line.lower()]) == 2
