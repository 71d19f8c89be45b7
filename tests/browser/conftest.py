"""A headless Chromium."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
