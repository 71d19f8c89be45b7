"""The chat page, as a person uses it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import snapkv_local

OPTIONS = ("--port", "0", "--ctx", "16k", "--budget", "512", "--max-tokens", "40")


@pytest.fixture(scope="module")
def url(serve: Callable[..., Any]) -> str:
    return str(serve(*OPTIONS, "--api-key", "sesame").url)


@pytest.fixture
def document(tmp_path: Path) -> Path:
    """About 7,500 tokens."""
    folder = Path(snapkv_local.__file__).parent
    text = (folder / "demo" / "station.txt").read_text(encoding="utf-8")
    file = tmp_path / "station.txt"
    file.write_text(f"{text}\n\n{text[:9000]}", encoding="utf-8")
    return file


def test_a_document_is_dropped_and_asked_about(
    open_page: Callable[..., Any], url: str, document: Path, tmp_path: Path
) -> None:
    page, problems = open_page(url, viewport={"width": 1000, "height": 760})
    page.fill("#key", "sesame")
    page.keyboard.press("Tab")
    page.wait_for_selector("#model:not(:empty)")

    page.set_input_files("#file", document)
    page.wait_for_selector("#drop.has-document")
    assert "station.txt" in page.inner_text("#document-name")
    page.fill("#question", "What is this text about? <b>bold</b>")
    page.click("#send")
    page.wait_for_selector("#progress:visible", timeout=120_000)
    page.screenshot(path=tmp_path / "reading.png")
    page.wait_for_selector(".figures", timeout=120_000)

    assert page.inner_text(".turn.assistant .text").strip()
    assert page.query_selector(".turn b") is None
    figures = page.inner_text(".figures")
    assert "kept 512 of " in figures
    n_prompt = int(figures.split(" of ")[1].split(" ")[0].replace(",", ""))
    assert 6000 < n_prompt < 9000
    assert "instead of" in figures
    assert page.is_hidden("#progress")

    page.screenshot(path=tmp_path / "light.png")
    page.emulate_media(color_scheme="dark")
    page.screenshot(path=tmp_path / "dark.png")
    page.set_viewport_size({"width": 375, "height": 700})
    page.screenshot(path=tmp_path / "phone.png")
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 375, "the page is wider than a phone"

    page.fill("#question", "And who works there?")
    page.click("#send")
    page.wait_for_selector(".figures >> nth=1", timeout=120_000)
    assert problems == []


def test_stop_ends_a_prefill_and_keeps_the_question(
    open_page: Callable[..., Any], url: str, document: Path
) -> None:
    page, problems = open_page(url)
    page.fill("#key", "sesame")
    page.set_input_files("#file", document)
    page.wait_for_selector("#drop.has-document")
    page.fill("#question", "Stopped?")
    page.keyboard.press("Enter")
    page.wait_for_selector("#progress:visible", timeout=120_000)
    page.click("#stop")
    page.wait_for_selector("#send:visible")
    assert page.input_value("#question") == "Stopped?"
    assert "station.txt" in page.inner_text("#document-name")
    assert page.inner_text("#status") == "stopped"
    assert problems == []


def test_a_wrong_key_is_said(open_page: Callable[..., Any], url: str) -> None:
    page, _ = open_page(url)
    page.fill("#key", "wrong")
    page.fill("#question", "Hello")
    page.click("#send")
    page.wait_for_selector("#status.error")
    assert "API key" in page.inner_text("#status")


def test_a_document_of_the_server(
    open_page: Callable[..., Any], serve: Callable[..., Any], tmp_path: Path
) -> None:
    file, document = tmp_path / "log.txt", tmp_path / "log.snapkv"
    text = (Path(snapkv_local.__file__).parent / "demo" / "station.txt").read_text(encoding="utf-8")
    file.write_text(text[:4000], encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "snapkv_local",
        "ingest",
        "needle",
        "--threads",
        "1",
        "--file",
        str(file),
    ]
    subprocess.run([*command, "--out", str(document)], check=True, capture_output=True)

    page, problems = open_page(serve(*OPTIONS, "--document", f"notes={document}").url)
    page.wait_for_selector("#library:visible")
    labels = page.eval_on_selector_all("#library option", "all => all.map((o) => o.text)")
    assert labels[0] == "none"
    assert labels[1].startswith("notes, ")
    n_tokens = int("".join(filter(str.isdigit, labels[1])))
    assert 700 < n_tokens < 1500
    bodies = []
    page.on("request", lambda r: bodies.append(r.post_data_json) if r.post_data else None)

    page.select_option("#library", "notes")
    for i, question in enumerate(("Who works here?", "And where?")):
        page.fill("#question", question)
        page.click("#send")
        page.wait_for_selector(f".figures >> nth={i}", timeout=120_000)
        n_prompt = page.inner_text(f".figures >> nth={i}").split(" of ")[1].split(" ")[0]
        assert int(n_prompt.replace(",", "")) > n_tokens
    assert [body["document"] for body in bodies] == ["notes", "notes"]
    assert "Who works" in bodies[0]["messages"][0]["content"][:20]  # the text is the server's
    assert page.inner_text(".attached").startswith("notes, ")

    # a list that comes again, as with another key, changes nothing
    with page.expect_response("**/v1/documents"):
        page.dispatch_event("#key", "change")
    page.wait_for_timeout(200)
    assert page.input_value("#library") == "notes"
    assert len(page.query_selector_all(".turn")) == 4

    # another document, another conversation, from the next question on; a file for that stays
    page.set_input_files("#file", file)
    page.wait_for_selector("#drop.has-document")
    page.select_option("#library", "")
    assert page.inner_text("#status").endswith("the next question starts a new one")
    assert "log.txt" in page.inner_text("#document-name")
    page.click("#remove")
    page.select_option("#library", "notes")
    assert page.inner_text("#status") == ""
    assert len(page.query_selector_all(".turn")) == 4
    page.select_option("#library", "")
    page.fill("#question", "Hello")
    page.click("#send")
    page.wait_for_selector("text=Hello")
    page.wait_for_selector(".figures", timeout=120_000)
    assert len(page.query_selector_all(".turn")) == 2
    assert "document" not in bodies[2]
    assert len(bodies[2]["messages"]) == 1
    assert problems == []


def test_a_server_without_documents_offers_none(open_page: Callable[..., Any], url: str) -> None:
    page, _ = open_page(url)
    page.fill("#key", "sesame")
    page.keyboard.press("Tab")
    page.wait_for_selector("#model:not(:empty)")
    assert page.is_hidden("#library-field")
