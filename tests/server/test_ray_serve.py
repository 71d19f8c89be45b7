"""The example of replicas behind Ray Serve: one is killed, and no answer is lost."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

pytest.importorskip("ray.serve", reason="Ray Serve is not installed")

FOLDER = Path(__file__).parents[2] / "examples" / "ray_serve"
START = """
import sys
from ray import serve
from app import build
serve.start(http_options={"port": int(sys.argv[1])})
serve.run(build({"model": "needle", "replicas": "2", "ctx": "1024", "documents": sys.argv[2]}), blocking=True)
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, book: Path) -> Iterator[str]:
    """Of two replicas that have the book."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("r")
    environment = {
        **os.environ,
        "PYTHONPATH": str(FOLDER),
        "RAY_AUTH_MODE": "disabled",
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    log = folder / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", START, str(port), str(book.parent)],
            cwd=FOLDER,
            env=environment,
            stdout=out,
            stderr=out,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        ends = time.monotonic() + 240
        while time.monotonic() < ends:
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                if httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        else:
            raise AssertionError(log.read_text()[-3000:])
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def chat(url: str, text: str, **fields: object) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 4, **fields}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60, trust_env=False)


def test_no_answer_is_lost_with_a_replica(url: str) -> None:
    command = [sys.executable, str(FOLDER / "kill_one.py"), url, "--conversations", "6"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.startswith("killed the replica in process ")
    assert "\n12 of 12 answers arrived" in result.stdout


def test_questions_about_a_document_go_to_one_replica_that_has_it(url: str) -> None:
    answers = [chat(url, text, document="station") for text in ("Who?", "Where?", "When?")]
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert len({answer.headers["x-replica"] for answer in answers}) == 1
    cached = answers[-1].json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached > 300


def test_what_the_server_refuses_is_refused_in_its_words(url: str) -> None:
    answer = chat(url, "Who?", document="none")
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "unknown_document"
