"""Starting and ending."""

import math
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest


def ask(url: str, key: str, **options: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2, **options}
    headers = {"Authorization": f"Bearer {key}"}
    address = f"{url}/v1/chat/completions"
    return httpx.post(address, json=body, headers=headers, timeout=300, trust_env=False)


def test_a_killed_server_starts_again_on_its_port(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first\nsecond\n")
    options = ("--full", "--ctx", "1k", "--max-queue", "0")
    server = serve("--port", "0", *options, "--api-key-file", str(keys))
    assert httpx.get(f"{server.url}/health", trust_env=False).status_code in (200, 503)
    server.wait_until_ready()
    assert ask(server.url, "second").status_code == 200

    second = serve("--port", server.port)
    assert second.process.wait(300) == 1
    assert "Address already in use" in second.errors()
    assert "--port" in second.errors()

    # an answer that the model cannot end early
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 300}
    body = {
        "messages": [{"role": "user", "content": "Count."}],
        "response_format": {"type": "json_object", "schema": schema},
        "stream": True,
    }
    headers = {"Authorization": "Bearer first"}
    address = f"{server.url}/v1/chat/completions"
    with (
        httpx.Client(trust_env=False, timeout=300) as client,
        client.stream("POST", address, json=body, headers=headers) as response,
    ):
        assert next(lines := response.iter_lines()).startswith(": prefill "), response.read()
        full = ask(server.url, "first")
        assert full.status_code == 429
        assert full.headers["Retry-After"]
        assert full.json()["error"]["code"] == "queue_full"
        server.end(signal.SIGKILL)

    again = serve("--port", server.port, *options, SNAPKV_API_KEY="third").wait_until_ready()
    assert ask(again.url, "first").status_code == 401
    answer = ask(again.url, "third", logprobs=True, top_logprobs=3, temperature=0).json()
    entry = answer["choices"][0]["logprobs"]["content"][0]
    best = max(other["logprob"] for other in entry["top_logprobs"])
    assert math.isclose(entry["logprob"], best)
    refused = ask(again.url, "third", snapkv={"budget": 5})
    assert refused.status_code == 400

    headers = {"Authorization": "Bearer third"}
    with (
        httpx.Client(trust_env=False, timeout=300) as client,
        client.stream("POST", f"{again.url}/v1/chat/completions", json=body, headers=headers) as r,
    ):
        lines = r.iter_lines()
        next(lines)
        again.process.send_signal(signal.SIGINT)
        rest = "\n".join(lines)
    assert "shutting_down" in rest
    assert again.process.wait(300) == 130
    assert "Traceback" not in again.errors()


def test_sigterm_is_success(serve: Callable[..., Any]) -> None:
    server = serve("--port", "0").wait_until_ready()
    code, errors = server.end(signal.SIGTERM)
    assert code == 0
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max-body", "0"), "not a size in bytes"),
        (("--api-key", " "), "is empty"),
        (("--full", "--budget", "8"), "leave out --budget"),
        (("--host", "192.0.2.1"), "cannot be listened on"),
        (("--window-size", "600", "--budget", "512"), "window_size"),
    ],
)
def test_wrong_options_say_what_to_do(
    serve: Callable[..., Any], options: tuple[str, ...], message: str
) -> None:
    server = serve("--port", "0", *options)
    assert server.process.wait(300) in (1, 2)
    assert message in server.errors()
    assert isinstance(server.process, subprocess.Popen)
