"""Documents that requests name."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

QUESTION = "What is the access code of the harbour office?"
SECOND = "What is the access code of the boat house?"


@pytest.fixture(scope="module")
def http(serve_document: Callable[..., Any], book: Path) -> Iterator[httpx.Client]:
    server = serve_document(f"handbook={book}").wait_until_ready()
    with httpx.Client(base_url=server.url, timeout=300, trust_env=False) as client:
        yield client


def ask(http: httpx.Client, *messages: str | dict[str, str], **fields: Any) -> httpx.Response:
    """Texts are a user's."""
    each = [m if isinstance(m, dict) else {"role": "user", "content": m} for m in messages]
    body = {"messages": each, "max_tokens": 24, "temperature": 0, **fields}
    return http.post("/v1/chat/completions", json=body)


def text_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    content: str = response.json()["choices"][0]["message"]["content"]
    return content


def snapkv(response: httpx.Response) -> dict[str, Any]:
    figures: dict[str, Any] = response.json()["usage"]["snapkv"]
    return figures


def test_documents_are_listed(http: httpx.Client, book: Path) -> None:
    (entry,) = http.get("/v1/documents").json()["data"]
    assert (entry["id"], entry["title"]) == ("handbook", "The station")
    assert entry["n_bytes"] == book.stat().st_size
    assert 300 < entry["n_tokens"] < 600


def test_a_question_is_answered_from_a_document(http: httpx.Client, codes: dict[str, str]) -> None:
    answer = ask(http, QUESTION, document="handbook")
    assert codes[QUESTION] in text_of(answer)
    (entry,) = http.get("/v1/documents").json()["data"]
    figures = snapkv(answer)
    assert entry["n_tokens"] - 64 <= figures["n_cached"] <= entry["n_tokens"]
    assert figures["n_kept"] == 192 < figures["n_prompt"]


def test_a_conversation_about_a_document_goes_on(http: httpx.Client, codes: dict[str, str]) -> None:
    first = ask(http, QUESTION, document="handbook", cache_prompt=False)
    answer = {"role": "assistant", "content": text_of(first)}
    second = ask(http, QUESTION, answer, SECOND, document="handbook")
    assert codes[SECOND] in text_of(second)
    # all that came before, the first turn too, but for what the new window begins with
    assert snapkv(second)["n_cached"] > snapkv(first)["n_cached"]


def test_other_requests_in_between_and_other_settings(http: httpx.Client) -> None:
    answer = ask(http, QUESTION, document="handbook")
    other = ask(http, "Is the capital of France called London? " * 30)
    assert snapkv(other)["n_cached"] < 50  # what the chat template begins with
    small = ask(http, QUESTION, document="handbook", snapkv={"budget": 96})
    assert snapkv(small)["n_kept"] == 96
    for again in (small, ask(http, QUESTION, document="handbook")):
        assert snapkv(again)["n_cached"] >= snapkv(answer)["n_cached"]
    anew = ask(http, QUESTION, document="handbook", cache_prompt=False)
    assert snapkv(anew)["n_cached"] == snapkv(answer)["n_cached"]
    assert text_of(anew) == text_of(answer)


TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("messages", "fields", "param", "says"),
    [
        ([QUESTION], {"document": "novel"}, "document", "GET /v1/documents lists them"),
        ([QUESTION], {"document": "../handbook"}, "document", "characters of ids only"),
        (
            [{"role": "system", "content": "Be short."}, QUESTION],
            {"document": "handbook"},
            "messages",
            "the first message must be a user's",
        ),
        ([QUESTION], {"document": "handbook", "tools": [TOOL]}, "tools", "leave out tools"),
    ],
)
def test_what_cannot_be_done_is_refused(
    http: httpx.Client, messages: list[Any], fields: dict[str, Any], param: str, says: str
) -> None:
    response = ask(http, *messages, **fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert says in error["message"]


def test_a_server_does_not_start_with_what_is_no_document(
    serve_document: Callable[..., Any], book: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.snapkv"
    damaged.write_bytes(book.read_bytes()[:-1])
    server = serve_document(str(damaged))
    assert server.process.wait(300) == 1
    assert "is truncated" in server.errors()
