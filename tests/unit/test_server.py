"""What the server does with requests before and after a model: an engine that is made up answers."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib import resources
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY

import pytest

pytest.importorskip("fastapi", reason="the extra `server` is not installed")

from fastapi.testclient import TestClient

from snapkv_local.errors import NoRoomError, OutOfMemoryError, PromptError
from snapkv_local.server import not_done
from snapkv_local.server.app import ServerOptions, make_app
from snapkv_local.server.place import Place
from snapkv_local.server.pool import Pool
from snapkv_local.server.resting import Rest, Resting
from snapkv_local.server.worker import Chunk, Done, Event, Job, Worker

KEY = {"Authorization": "Bearer right"}
BODY = {"messages": [{"role": "user", "content": "Hello"}]}
FIGURES = {
    "n_prompt": 3,
    "n_kept": 3,
    "n_cached": 1,
    "bytes_kv": 8,
    "bytes_decode_cells": 0,
    "bytes_kv_full": 8,
    "coverage": 1.0,
    "seconds_prefill": 0.1,
    "layer_group": 0,
    "compressed_now": False,
}
USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "total_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 1},
    "snapkv": FIGURES,
}


class FakePool:
    """One conversation in a place, and two that rest."""

    def __init__(self) -> None:
        reach: Any = SimpleNamespace(tokens=[1, 2, 3])
        no_state: Any = None
        self.places = [Place(0, no_state, reach, id="a1", figures=FIGURES)]
        self.resting = Resting(1000)
        self.resting.add("b2", reach, SimpleNamespace(n_bytes=100), FIGURES)  # type: ignore[arg-type]
        self.resting._all["c3"] = Rest("c3", reach, None, None, 200, None)

    held = Pool.held


class FakeEngine:
    """Says "Good day", or raises; waits for `may_answer` first."""

    model = "fake"
    n_ctx = 512
    template = ""
    file_name = "fake.gguf"
    fingerprint = "b-fake"
    pool = FakePool()

    def sizes(self) -> dict[str, Any]:
        return {"n_ctx": self.n_ctx}

    def __init__(self) -> None:
        tokens = range(1234)
        book = SimpleNamespace(title="A book", text="Once", tokens=tokens, n_bytes=5678)
        self.documents = {"book": book}
        self.error: Exception | None = None
        self.may_answer = threading.Event()
        self.may_answer.set()

    def is_whole(self) -> bool:
        return True

    def chat(self, _request: Any, _job: Job) -> Iterator[Event]:
        assert self.may_answer.wait(30)
        if self.error is not None:
            raise self.error
        for piece, reason in (("Good", None), (" day", "stop")):
            choice = {"index": 0, "delta": {"content": piece}, "logprobs": None}
            choices = [{**choice, "finish_reason": reason}]
            kind = "chat.completion.chunk"
            chunk = {"id": "1", "object": kind, "created": 1, "model": "fake", "choices": choices}
            yield Chunk(chunk)
        yield Done(USAGE)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def serve(engine: FakeEngine) -> Iterator[Callable[..., TestClient]]:
    """Makes a client of a server with one place in its queue; errors are answers, as over a wire."""
    workers: list[Worker] = []

    def serve(**options: Any) -> TestClient:
        worker = Worker(1, load=lambda: 1, on_failure=lambda _: None)
        worker.start()
        workers.append(worker)
        app = make_app(engine, worker, ServerOptions(**options))  # type: ignore[arg-type]
        return TestClient(app, raise_server_exceptions=False)

    yield serve
    engine.may_answer.set()
    for worker in workers:
        worker.stop()


def error_of(response: Any) -> dict[str, Any]:
    """The error, whose fields are always the same four."""
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    assert sorted(body["error"]) == ["code", "message", "param", "type"]
    assert body["error"]["message"]
    return body["error"]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content"),
        ({"user": "\udfff"}, "user"),
        ({"metadata": {"\ud800": 1}}, "metadata"),
        ({"stop": ["a", "\ud83d"]}, "stop.1"),
    ],
)
def test_half_a_surrogate_pair_is_refused(
    serve: Callable[..., TestClient], change: Any, where: str
) -> None:
    body = json.dumps({**BODY, **change})
    headers = {**KEY, "Content-Type": "application/json"}
    answer = serve().post("/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code == 400
    assert f"{where} has half of a surrogate pair" in answer.json()["error"]["message"]


@pytest.mark.parametrize("levels", [101, 400, 50_000])
def test_deep_json_is_refused(serve: Callable[..., TestClient], levels: int) -> None:
    inner = '{"a":' * levels + "1" + "}" * levels
    function = f'[{{"type":"function","function":{{"name":"f","parameters":{inner}}}}}]'
    for field in (f'"metadata":{inner}', f'"tools":{function}', f'"other":{inner}'):
        body = json.dumps(BODY)[:-1] + f",{field}}}"
        headers = {**KEY, "Content-Type": "application/json"}
        answer = serve().post("/v1/chat/completions", content=body, headers=headers)
        assert answer.status_code == 400


def test_an_answer_is_put_together_from_its_pieces(serve: Callable[..., TestClient]) -> None:
    answer = serve().post("/v1/chat/completions", json=BODY)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "Good day"
    assert answer.json()["usage"] == USAGE


def test_a_stream_ends_with_done(serve: Callable[..., TestClient]) -> None:
    answer = serve().post("/v1/chat/completions", json={**BODY, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    assert len(events) == 3
    assert events[-1] == "data: [DONE]"


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"x-api-key": "wrong"}])
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/openapi.json", "/no/such/path"])
def test_without_the_key_nothing_is_told(
    serve: Callable[..., TestClient], path: str, header: dict[str, str]
) -> None:
    response = serve(api_keys=("other", "right")).get(path, headers=header)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert error_of(response)["code"] == "invalid_api_key"


def test_the_key_opens_and_health_needs_none(serve: Callable[..., TestClient]) -> None:
    client = serve(api_keys=("other", "right"))
    for header in (KEY, {"X-Api-Key": "right"}):
        assert client.get("/v1/models", headers=header).json()["data"][0]["id"] == "fake"
    for path in ("/health", "/v1/health"):
        assert client.get(path).status_code == client.head(path).status_code == 200


def test_a_body_at_the_limit_passes_and_one_beyond_does_not(
    serve: Callable[..., TestClient],
) -> None:
    content = json.dumps(BODY).encode()
    headers = {"Content-Type": "application/json"}
    path = "/v1/chat/completions"
    fits = serve(max_body=len(content)).post(path, content=content, headers=headers)
    assert fits.status_code == 200
    small = serve(max_body=len(content) - 1)
    named = small.post(path, content=content, headers=headers)
    # in pieces, whose sum no header tells
    chunked = small.post(path, content=iter([content[:9], content[9:]]), headers=headers)
    for refused in (named, chunked):
        assert refused.status_code == 413
        assert error_of(refused)["code"] == "request_too_large"


@pytest.mark.parametrize(
    "path", [path for paths in not_done.REASONS for path in paths.format(id=0).split()]
)
def test_what_is_not_done_says_why(serve: Callable[..., TestClient], path: str) -> None:
    client = serve()
    for response in (client.post(path, json={}), client.get(path)):
        assert response.status_code == 501
        if not path.startswith("/v1/messages"):
            assert error_of(response)["code"] == "not_supported"
            assert error_of(response)["type"] == "server_error"


def test_a_message_is_answered(serve: Callable[..., TestClient], engine: FakeEngine) -> None:
    client = serve(api_keys=("right",))
    body = {"max_tokens": 5, "messages": [{"role": "user", "content": "Hello"}]}
    answer = client.post("/v1/messages", json=body, headers={"X-Api-Key": "right"}).json()
    assert answer["content"] == [{"type": "text", "text": "Good day"}]
    assert client.post("/v1/messages", json=body).json() == {
        "type": "error",
        "error": {"type": "authentication_error", "message": ANY},
    }
    wrong = client.post("/v1/messages", json={"messages": 1}, headers={"X-Api-Key": "right"})
    assert wrong.status_code == 400
    assert wrong.json()["error"]["type"] == "invalid_request_error"
    engine.error = OutOfMemoryError("cache", "no memory", "lower ctx")
    failed = client.post("/v1/messages", json=body, headers={"X-Api-Key": "right"})
    assert (failed.status_code, failed.json()["error"]["type"]) == (503, "overloaded_error")


def test_a_response_is_answered(serve: Callable[..., TestClient]) -> None:
    client = serve()
    answer = client.post("/responses", json={"input": "Hello"}).json()
    assert answer["output"][0]["content"][0]["text"] == "Good day"
    stream = client.post("/v1/responses", json={"input": "Hello", "stream": True}).text
    names = re.findall(r"^event: response\.(.+)$", stream, re.M)
    assert (names[0], names[-1]) == ("created", "completed")


def test_the_one_model_has_a_name(serve: Callable[..., TestClient]) -> None:
    client = serve()
    assert client.get("/v1/models/fake").json()["id"] == "fake"
    assert error_of(client.get("/v1/models/other"))["code"] == "model_not_found"


def test_a_strict_server_refuses_unknown_fields_of_each_api(
    serve: Callable[..., TestClient],
) -> None:
    client = serve(strict=True)
    for path, body in (
        ("/v1/messages", {"messages": BODY["messages"], "max_tokens": 1}),
        ("/v1/responses", {"input": "x"}),
        ("/completion", {"prompt": "x"}),
        ("/tokenize", {"content": "x"}),
        ("/v1/chat/completions", BODY),
    ):
        client.post("/v1/chat/completions", json=BODY)  # it is loaded
        refused = client.post(path, json={**body, "colour": "red"})
        assert refused.status_code == 400, path
        assert "colour" in refused.json()["error"]["message"]


def test_documents_are_listed(serve: Callable[..., TestClient]) -> None:
    client = serve()
    assert client.post("/v1/chat/completions", json=BODY).status_code == 200  # it is loaded
    listed = client.get("/v1/documents").json()
    entry = {"id": "book", "object": "document", "title": "A book"}
    assert listed == {
        "object": "list",
        "data": [{**entry, "n_tokens": 1234, "n_bytes": 5678}],
    }


def test_no_documents_are_listed_before_they_are_open(engine: FakeEngine) -> None:
    never_started = Worker(1, load=lambda: 1, on_failure=lambda _: None)
    app = make_app(engine, never_started, ServerOptions())  # type: ignore[arg-type]
    response = TestClient(app).get("/v1/documents")
    assert response.status_code == 503
    assert error_of(response)["code"] == "loading"


@pytest.mark.parametrize("id_", ["", "a/b", "../etc/passwd", "a" * 65, 7, None])
def test_what_is_no_id_of_a_document(serve: Callable[..., TestClient], id_: Any) -> None:
    response = serve().post("/v1/chat/completions", json={**BODY, "document": id_})
    assert response.status_code == (200 if id_ is None else 400)
    if id_ is not None:
        assert error_of(response)["param"] == "document"


def test_conversations_are_listed_with_those_that_rest(serve: Callable[..., TestClient]) -> None:
    client = serve()
    assert client.post("/v1/chat/completions", json=BODY).status_code == 200  # it is loaded
    (place,) = client.get("/slots").json()
    assert (place["id"], place["conversation"], place["n_tokens"]) == (0, "a1", 3)
    assert place["snapkv"] == FIGURES
    listed = client.get("/slots", params={"resting": True}).json()
    assert listed[0] == place
    assert [(e["id"], e["conversation"], e["rests_in"], e["n_bytes"]) for e in listed[1:]] == [
        (-1, "b2", "ram", 100),
        (-1, "c3", "disk", 200),
    ]
    assert [each["snapkv"] for each in listed[1:]] == [FIGURES, None]
    assert client.get("/slots", params={"resting": "perhaps"}).status_code == 400


def test_what_conversations_hold_may_be_hidden(serve: Callable[..., TestClient]) -> None:
    assert serve().get("/slots").status_code == 200
    response = serve(shows_slots=False).get("/slots")
    assert response.status_code == 501
    assert "--no-slots" in error_of(response)["message"]


def test_used_tokens_are_counted(serve: Callable[..., TestClient]) -> None:
    client = serve()
    client.post("/v1/chat/completions", json=BODY)
    lines = client.get("/metrics").text.splitlines()
    for kind, n in (("prompt", 3), ("cached", 1), ("completion", 2)):
        assert f'snapkv_tokens_total{{kind="{kind}"}} {n}.0' in lines


def test_a_full_queue_is_said_and_the_others_are_answered(
    serve: Callable[..., TestClient], engine: FakeEngine
) -> None:
    client = serve()
    engine.may_answer.clear()
    with client, ThreadPoolExecutor(3) as threads:
        # one runs, one waits, and the third finds no place; which one that is nobody knows
        asked = [threads.submit(client.post, "/v1/chat/completions", json=BODY) for _ in range(3)]
        refused = next(as_completed(asked, timeout=30)).result()
        engine.may_answer.set()
        answers = [a.result() for a in asked]
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429]
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "5"
    assert error_of(refused)["code"] == "queue_full"
    assert error_of(refused)["type"] == "rate_limit_error"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (PromptError("prompt", "is too long", "shorten it"), 400, "context_length_exceeded"),
        (NoRoomError("1 token", "no cells", "raise room"), 400, "no_room"),
        (OutOfMemoryError("cache", "no memory", "lower ctx"), 503, "out_of_memory"),
        (RuntimeError("a secret of the process"), 500, "internal_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_engine_raises_has_a_status_and_a_code(
    serve: Callable[..., TestClient],
    engine: FakeEngine,
    error: Exception,
    status: int,
    code: str,
    stream: bool,
) -> None:
    engine.error = error
    response = serve().post("/v1/chat/completions", json={**BODY, "stream": stream})
    assert response.status_code == status
    assert error_of(response)["code"] == code
    assert "secret" not in response.text


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("GET", "/no/such/path", {}, 404),
        ("GET", "/v1/../etc/passwd", {}, 404),
        ("GET", "/v1/chat/completions", {}, 405),
        ("POST", "/v1/chat/completions", {"content": b"{", "headers": "application/json"}, 400),
        ("POST", "/v1/chat/completions", {"content": b"{}", "headers": "text/plain"}, 415),
        ("POST", "/v1/chat/completions", {"content": b"{}", "headers": "application/json"}, 400),
    ],
)
def test_wrong_requests_get_errors_in_openais_form(
    serve: Callable[..., TestClient], method: str, path: str, options: Any, status: int
) -> None:
    if "headers" in options:
        options = {**options, "headers": {"Content-Type": options["headers"]}}
    response = serve().request(method, path, **options)
    assert response.status_code == status
    assert error_of(response)["type"] == "invalid_request_error"


def test_a_field_at_fault_is_named(serve: Callable[..., TestClient]) -> None:
    response = serve().post("/v1/chat/completions", json={**BODY, "temperature": "hot"})
    assert response.status_code == 400
    assert error_of(response)["param"] == "temperature"


@pytest.mark.parametrize(
    "settings",
    [
        {"pooling": "nosink", "self_weight": 0.5},
        {"self_weight": 0},
        {"self_weight": 1000, "kernel_size": 1},
    ],
)
def test_settings_of_one_request(
    serve: Callable[..., TestClient], engine: FakeEngine, settings: dict[str, Any]
) -> None:
    asked: list[Any] = []
    chat = engine.chat

    def note(request: Any, job: Job) -> Iterator[Event]:
        asked.append(request.snapkv.model_dump(exclude_none=True))
        return chat(request, job)

    engine.chat = note  # type: ignore[method-assign]
    assert (
        serve().post("/v1/chat/completions", json={**BODY, "snapkv": settings}).status_code == 200
    )
    assert asked == [settings]


@pytest.mark.parametrize(
    "settings",
    [
        {"self_weight": -0.1},
        {"self_weight": 1000.5},
        {"self_weight": "much"},
        {"pooling": "trimmed"},
    ],
)
def test_settings_out_of_range_are_refused(
    serve: Callable[..., TestClient], settings: dict[str, Any]
) -> None:
    response = serve().post("/v1/chat/completions", json={**BODY, "snapkv": settings})
    assert response.status_code == 400
    assert error_of(response)["param"] == f"snapkv.{next(iter(settings))}"


def test_a_server_by_another_name_is_refused(serve: Callable[..., TestClient]) -> None:
    client = serve(hosts=frozenset({"localhost"}))
    assert client.get("/health", headers={"Host": "localhost:80"}).status_code == 200
    refused = client.get("/health", headers={"Host": "evil.example"})
    assert refused.status_code == 403
    assert error_of(refused)["code"] == "host_not_allowed"


def test_the_page_gets_all_its_files_without_a_key(serve: Callable[..., TestClient]) -> None:
    client = serve(api_keys=("secret",))
    page = client.get("/").text
    files = re.findall(r'(?:src|href)="(/[^"]+)"', page)
    folder = resources.files("snapkv_local.server") / "page"
    there = {f"/page/{file.name}" for file in folder.iterdir()}
    assert set(files) == there - {"/page/index.html"}
    for file in files:
        answer = client.get(file)
        assert answer.status_code == 200
        assert answer.headers["content-type"].split(";")[0] in ("text/javascript", "text/css")


def test_a_header_names_them_and_strict_refuses_them(
    serve: Callable[..., Any],
) -> None:
    body = {**BODY, "top_a": 1, "né, \n": 2, "": 3}
    for stream in (False, True):
        answer = serve().post("/v1/chat/completions", json={**body, "stream": stream})
        assert answer.status_code == 200
        assert answer.headers["X-SnapKV-Ignored"] == 'top_a, n\\xe9???, ""'
    known = serve().post("/v1/chat/completions", json=BODY)
    assert "X-SnapKV-Ignored" not in known.headers
    refused = serve(strict=True).post("/v1/chat/completions", json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "top_a"
    assert serve(strict=True).post("/v1/chat/completions", json=BODY).status_code == 200


def test_what_is_no_json_is_said_in_our_words(serve: Callable[..., Any]) -> None:
    headers = {"Content-Type": "application/json"}
    answer = serve().post("/v1/chat/completions", content=b'{"a":', headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("body: is not JSON")
