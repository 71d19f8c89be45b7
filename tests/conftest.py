"""What tests of several layers share."""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

# One thread computes: small models are no work for two, which wait for each other on a busy machine.
os.environ.setdefault("OMP_THREAD_LIMIT", "1")
# Hundreds of processes are started: without this each would compile all modules of the package again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(ThreadingHTTPServer):
    """The few requests that huggingface_hub makes to read a model's repository.

    files are its contents by name; refusal is a status and the hub's code for all requests of files;
    token is asked for if it is set; broken answers 503; requests are those that came, as "METHOD path".
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Repository)
        self.repo_id = "owner/repo"
        self.files: dict[str, bytes] = {}
        self.refusal: tuple[int, str] | None = None
        self.token: str | None = None
        self.broken = False
        self.requests: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """For a process that uses this hub, and a cache of its own."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "no_proxy": "127.0.0.1",
        }


class _Repository(BaseHTTPRequestHandler):
    server: FakeHub

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def answer(self, with_body: bool) -> None:
        hub, path = self.server, self.path.split("?")[0]
        hub.requests.append(f"{self.command} {path}")
        if hub.broken:
            self.reply(503, {}, b"")
        elif hub.token is not None and self.headers["Authorization"] != f"Bearer {hub.token}":
            self.reply(401, {"X-Error-Code": "RepoNotFound"}, b"")
        elif path == f"/api/models/{hub.repo_id}":
            files = [{"rfilename": name} for name in hub.files]
            info = {"id": hub.repo_id, "sha": COMMIT, "siblings": files, "tags": []}
            self.reply(200, {"Content-Type": "application/json"}, json.dumps(info).encode())
        elif hub.refusal is not None and path.startswith(f"/{hub.repo_id}/resolve/"):
            self.reply(hub.refusal[0], {"X-Error-Code": hub.refusal[1]}, b"")
        elif (name := path.removeprefix(f"/{hub.repo_id}/resolve/main/")) in hub.files:
            content = hub.files[name]
            etag = hashlib.sha256(content).hexdigest()
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
            self.reply(200, headers, content, with_body)
        else:
            code = "EntryNotFound" if "/resolve/" in path else "RepoNotFound"
            self.reply(404, {"X-Error-Code": code}, b"")

    def reply(
        self, status: int, headers: dict[str, str], body: bytes, with_body: bool = True
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body and self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def fake_hub() -> Iterator[FakeHub]:
    """A hub at 127.0.0.1 with the empty repository owner/repo."""
    hub = FakeHub()
    yield hub
    hub.stop()
