"""The examples that talk to a server."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
KEY = "a key of the tests"


@pytest.fixture
def run(server: Any, tmp_path: Path, document: str) -> Callable[[str], list[str]]:
    """Runs an example on a part of the document that is longer than the cache has cells; lines of stdout."""
    file = tmp_path / "station.txt"
    file.write_text(document[:6000], encoding="utf-8")
    environment = {
        **os.environ,
        "OPENAI_BASE_URL": f"{server.url}/v1",
        "SNAPKV_API_KEY": KEY,
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }

    def run(name: str) -> list[str]:
        command = [sys.executable, str(EXAMPLES / name), str(file), "Where does the pump stand?"]
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()

    return run


def test_openai_client(run: Callable[[str], list[str]]) -> None:
    *answer, figures = run("openai_client.py")
    assert "".join(answer).strip()
    assert figures.startswith("kept 512 of ")
    assert figures.endswith("bytes of KV")


def test_langchain_chat(run: Callable[[str], list[str]]) -> None:
    pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    *answer, figures = run("langchain_chat.py")
    assert "".join(answer).strip()
    read, written = (int(word) for word in figures.split() if word.isdecimal())
    assert read > 512
    assert written > 1
