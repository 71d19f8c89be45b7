"""Files that are cut or replaced while a server has them mapped."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from snapkv_local.models.resolve import needle_model

OFFICE = "What is the access code of the harbour office?"
OTHER = "What is the capital of France?"


def ask(server: Any, question: str, **fields: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": 24, **fields}
    address = f"{server.url}/v1/chat/completions"
    return httpx.post(address, json={"temperature": 0, **body}, timeout=300, trust_env=False)


def text_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def refuses(server: Any, response: httpx.Response, says: str) -> None:
    assert response.status_code == 503
    error = response.json()["error"]
    assert error["code"] == "file_changed"
    assert says in error["message"]
    assert f"ERROR {error['message']}" in server.errors()
    assert server.process.poll() is None


def health(server: Any) -> tuple[int, Any]:
    response = httpx.get(f"{server.url}/health", trust_env=False)
    return response.status_code, response.json()


def test_a_document_that_is_cut(
    serve_document: Callable[..., Any], book: Path, codes: dict[str, str], tmp_path: Path
) -> None:
    book = Path(shutil.copy(book, tmp_path))
    server = serve_document(f"book={book}").wait_until_ready()
    whole = book.read_bytes()
    answer = text_of(ask(server, OFFICE, document="book"))
    assert codes[OFFICE] in answer
    other = text_of(ask(server, OTHER))

    # a copy that takes its place leaves the one that is open as it is
    kept, copy = book.with_name("kept"), book.with_name("copy")
    os.link(book, kept)
    copy.write_bytes(b"x")
    copy.replace(book)
    assert text_of(ask(server, OFFICE, document="book")) == answer

    read = serve_document(f"book={kept}", "--no-mmap").wait_until_ready()
    os.truncate(kept, 8192)
    for _ in range(2):
        refused = ask(server, OFFICE, document="book")
        refuses(server, refused, f"was cut in place from {len(whole):,} to 8,192 bytes")
        assert text_of(ask(server, OTHER)) == other
    assert ask(server, OFFICE, document="book", stream=True).status_code == 503
    assert text_of(ask(read, OFFICE, document="book")) == answer


def test_a_model_that_is_cut(serve: Callable[..., Any], tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    shutil.copy(needle_model(), model)
    mapped = serve("--ctx", "1k", "--port", "0", model=str(model)).wait_until_ready()
    full = serve("--ctx", "1k", "--port", "0", "--full", model=str(model)).wait_until_ready()
    read = serve("--ctx", "1k", "--port", "0", "--no-mmap", model=str(model)).wait_until_ready()
    answer = text_of(ask(read, OTHER))
    assert text_of(ask(mapped, OTHER)) == text_of(ask(full, OTHER)) == answer
    os.truncate(model, 2**20)
    for server in (mapped, full):
        for _ in range(2):
            refuses(server, ask(server, OTHER), "to 1,048,576 bytes after it was loaded")
        assert "--no-mmap" in server.errors()
        assert health(server) == (503, {"status": "model_changed"})
    assert health(read) == (200, {"status": "ok"})
    assert text_of(ask(read, OTHER)) == answer
