"""A server process with the package's small model, as a person would start it."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest

import snapkv_local
from snapkv_local.bench.blueprint import Blueprint
from snapkv_local.bench.make_model import make_model
from snapkv_local.models.gguf_shape import read_shape
from snapkv_local.models.resolve import needle_model

KEY = "a key of the tests"
BUDGET = 512
MAX_TOKENS = 96
MAX_QUEUE = 24
MAX_BODY = 1024 * 1024
PATIENCE = 300  # seconds until an answer is missed, however busy the machine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.model)


class Process:
    """A server in a process of its own; url once it listens."""

    def __init__(self, *options: str, model: str = "needle", **environment: str) -> None:
        command = [
            sys.executable,
            "-m",
            "snapkv_local",
            "serve",
            model,
            "--threads",
            "1",  # two would wait for each other on a busy machine
            *options,
        ]
        # a pipe that nobody reads would fill; closed when it is collected
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            # a shell starts its background jobs deaf to Ctrl-C, and the tests may be in one
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()

    @property
    def port(self) -> str:
        return self.url.rsplit(":", 1)[1]

    def wait_until_ready(self) -> "Process":
        ends = time.monotonic() + PATIENCE
        while time.monotonic() < ends:
            try:
                if httpx.get(f"{self.url}/health", trust_env=False).status_code == 200:
                    return self
            except httpx.TransportError:
                assert self.process.poll() is None, self.errors()
            time.sleep(0.05)
        raise AssertionError(f"the server is not ready after {PATIENCE} s")

    def end(self, number: int) -> tuple[int, str]:
        """Send a signal; the exit code, and what stderr had."""
        self.process.send_signal(number)
        self.process.wait(PATIENCE)
        return self.process.returncode, self.errors()

    def errors(self) -> str:
        """What stderr has so far."""
        self.log.seek(0)
        return self.log.read()


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[..., Process]]:
    """Starts servers, which are killed at the end."""
    started: list[Process] = []

    def serve(*options: str, **environment: str) -> Process:
        process = Process(*options, **environment)
        started.append(process)
        return process

    yield serve
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.communicate()


@pytest.fixture(scope="session")
def serve_document(serve: Callable[..., Process]) -> Callable[..., Process]:
    """Starts servers of small sizes with a document, [NAME=]FILE."""

    def serve_document(document: str, *options: str) -> Process:
        return serve(
            *("--port", "0", "--ctx", "1k", "--budget", "192", "--window-size", "16"),
            *("--decode-cells", "64", *options, "--document", document),
        )

    return serve_document


@pytest.fixture(scope="session")
def server(serve: Callable[..., Process]) -> Process:
    """With two conversations, a key, a cap on tokens, a queue and a limit on bodies."""
    process = serve(
        *("--port", "0", "--api-key", KEY, "--ctx", "8k", "--budget", str(BUDGET)),
        *("--max-tokens", str(MAX_TOKENS), "--max-queue", str(MAX_QUEUE), "--parallel", "2"),
        *("--max-body", str(MAX_BODY)),
    )
    return process.wait_until_ready()


@pytest.fixture(scope="session")
def http(server: Process) -> Iterator[httpx.Client]:
    """With the key."""
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(
        base_url=server.url, headers=headers, timeout=PATIENCE, trust_env=False
    ) as client:
        yield client


@pytest.fixture(scope="session")
def tiny(
    serve: Callable[..., Process], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """Of a server with a tiny model, for many requests whose answers say nothing.

    SNAPKV_FUZZ_URL names a server that runs already.
    """
    url = os.environ.get("SNAPKV_FUZZ_URL")
    if url is None:
        path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
        n_vocab = read_shape(needle_model()).n_vocab
        shape = Blueprint("llama", 2, 64, 128, 4, 2, 16, n_vocab, 1e5, tied=True)
        make_model(shape, "q8_0", path, name="tiny", vocab=needle_model())
        options = ("--port", "0", "--ctx", "2k", "--budget", "128", "--max-tokens", "64")
        url = serve(*options, model=str(path)).wait_until_ready().url
    with httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False) as client:
        yield client


@pytest.fixture(scope="session")
def client(server: Process) -> openai.OpenAI:
    """OpenAI's own client, which would otherwise try again when it fails."""
    return openai.OpenAI(
        base_url=f"{server.url}/v1",
        api_key=KEY,
        max_retries=0,
        timeout=PATIENCE,
        http_client=httpx.Client(trust_env=False),
    )


@pytest.fixture(scope="session")
def document() -> str:
    """About 4,700 tokens."""
    folder = Path(snapkv_local.__file__).parent
    return (folder / "demo" / "station.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def codes() -> dict[str, str]:
    """Questions, and the answers that stand in the book."""
    places = {"harbour office": "58213", "boat house": "40762"}
    return {f"What is the access code of the {p}?": code for p, code in places.items()}


@pytest.fixture(scope="session")
def book(document: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 500 tokens, in a file."""
    folder = tmp_path_factory.mktemp("documents")
    text, path = folder / "station.txt", folder / "station.snapkv"
    facts = (
        "The access code of the harbour office is 58213.",
        "The access code of the boat house is 40762.",
    )
    parts = document[:500], facts[0], document[500:1000], facts[1], document[1000:1500]
    text.write_text("\n\n".join(parts), encoding="utf-8")
    command = [sys.executable, "-m", "snapkv_local", "ingest", "needle", "--file", str(text)]
    command += ["--out", str(path), "--ctx", "1k", "--threads", "1", "--title", "The station"]
    subprocess.run(command, check=True, capture_output=True)
    return path
