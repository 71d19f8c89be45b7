"""A headless Chromium, and servers for it."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.model)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A playwright Browser: the system's Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if path is None:
        pytest.skip(f"no Chromium: none of {', '.join(CHROMIUMS)} is installed")
    with sync_api.sync_playwright() as playwright:
        # root, as in a container, has no sandbox
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Server:
    """`serve needle` with options; url once the model is loaded."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-m", "snapkv_local", "serve", "needle", "--threads", "1"]
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [*command, *options],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        ends = time.monotonic() + 300
        while self.get("/health").status_code != 200:
            assert time.monotonic() < ends
            time.sleep(0.1)

    @property
    def port(self) -> str:
        return self.url.rsplit(":", 1)[1]

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", trust_env=False)

    def end(self, number: int = signal.SIGTERM) -> None:
        """Have it write what rests, and go."""
        if self.process.poll() is None:
            self.process.send_signal(number)
            self.process.communicate(timeout=300)


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[..., Server]]:
    """Starts servers, which are killed at the end."""
    started: list[Server] = []

    def serve(*options: str) -> Server:
        started.append(Server(*options))
        return started[-1]

    yield serve
    for each in started:
        each.end(signal.SIGKILL)


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., tuple[Any, list[str]]]]:
    """Opens a page in a browser of its own, without anything stored; what goes wrong in it comes, too."""
    contexts = []

    def open_page(url: str, **options: Any) -> tuple[Any, list[str]]:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        # the browser itself logs every answer without success
        is_ours = lambda line: line.type == "error" and "Failed to load" not in line.text  # noqa: E731
        page.on("console", lambda line: problems.append(line.text) if is_ours(line) else None)
        page.goto(url)
        return page, problems

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def view_file(browser: Any) -> Iterator[Callable[[Path, int, str], tuple[Any, list[str]]]]:
    """Opens a file as a page; every request that it makes, and what its console says, comes too."""
    contexts = []

    def view_file(path: Path, width: int, scheme: str) -> tuple[Any, list[str]]:
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, has_touch=width < 500
        )
        contexts.append(context)
        found = context.new_page()
        noise: list[str] = []
        found.on("request", lambda request: noise.append(request.url))
        found.on("console", lambda message: noise.append(message.text))
        found.on("pageerror", lambda error: noise.append(str(error)))
        found.goto(path.as_uri())
        return found, noise

    yield view_file
    for context in contexts:
        context.close()
