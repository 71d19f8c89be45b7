"""Servers to measure, each in a process of its own: ours, and llama.cpp's llama-server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

HERE = Path(__file__).resolve().parent
SECONDS_TO_START = 300


class Server:
    """A server that has been started.

    Args:
        command: that starts it.
        url: where it will be; None if its first line of stdout says that.
    """

    def __init__(self, command: list[str], url: str | None = None) -> None:
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        out = subprocess.PIPE if url is None else self.log
        self.process = subprocess.Popen(command, stdout=out, stderr=self.log, text=True)
        if url is None:
            assert self.process.stdout is not None
            url = self.process.stdout.readline().strip()
        # a connection a request: a server may close one that rests just as it is used again
        limits = httpx.Limits(max_keepalive_connections=0)
        self.client = httpx.Client(base_url=url, timeout=1800, trust_env=False, limits=limits)
        ends = time.monotonic() + SECONDS_TO_START
        while not self._is_healthy():
            if self.process.poll() is not None or time.monotonic() > ends:
                self.process.kill()
                self.log.seek(0)
                sys.exit(f"{command[0]} does not start:\n{self.log.read()}")
            time.sleep(0.2)

    def _is_healthy(self) -> bool:
        try:
            return self.client.get("/health").status_code == 200
        except httpx.HTTPError:
            return False

    def end(self, number: int = signal.SIGTERM) -> None:
        """Send a signal, and wait."""
        self.process.send_signal(number)
        self.process.wait(60)
        self.client.close()

    def bytes_of(self, name: str) -> int:
        """Memory of the process, as Linux names it: VmRSS, VmHWM (its peak), RssAnon (no files)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(status.partition(f"{name}:")[2].split()[0])

    def seconds_cpu(self) -> float:
        """Of the processor, that the process and its threads have used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def bytes_resident(self) -> int:
        """Memory of the process, mapped files included."""
        return self.bytes_of("VmRSS")

    def ask(
        self, prompt: list[int], n: int = 8, leave_after: float | None = None, **fields: Any
    ) -> dict[str, Any]:
        """An answer to tokens: its tokens, what was evaluated, and seconds to the first token, by the clock
        and of the server's processor.

        Args:
            leave_after: seconds after which the client goes away.
        """
        body = {"prompt": prompt, "n_predict": n, "temperature": 0, "stream": True, **fields}
        body |= {"ignore_eos": True, "return_tokens": True}
        first, cpu, tokens, last = None, None, [], {}
        began, began_cpu = time.monotonic(), self.seconds_cpu()
        with self.client.stream("POST", "/completion", json=body) as response:
            if response.status_code != 200:
                return {"status": response.status_code, "tokens": []}
            for line in response.iter_lines():
                if leave_after is not None and time.monotonic() - began > leave_after:
                    return {"left": True, "tokens": tokens}
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line.removeprefix("data: "))
                if event.get("tokens") and first is None:
                    first, cpu = time.monotonic() - began, self.seconds_cpu() - began_cpu
                tokens += event.get("tokens", [])
                last = event
        timings = last.get("timings", {})
        return {
            "tokens": tokens,
            "n_evaluated": timings.get("prompt_n"),
            "n_cached": timings.get("cache_n"),
            "seconds_first": first,
            "seconds_cpu": cpu,
            "seconds": time.monotonic() - began,
            "slot": last.get("id_slot"),
        }


class Ours(Server):
    """`snapkv-local serve`."""

    def __init__(self, model: str, *options: str) -> None:
        super().__init__(
            [sys.executable, "-m", "snapkv_local", "serve", model, "--port", "0", *options]
        )


class LlamaServer(Server):
    """llama.cpp's own.

    Args:
        program: its path, or that of a Python that has it in the package xllamacpp.
        model: path of the GGUF file.
    """

    def __init__(self, program: str, model: str, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        command = [*command_of(program), "--model", model, "--host", "127.0.0.1", "--port", port]
        super().__init__([*command, *options], f"http://127.0.0.1:{port}")


def command_of(program: str) -> list[str]:
    """What starts llama-server."""
    is_python = Path(program).name.startswith("python")
    return [program, str(HERE / "xllamacpp_server.py")] if is_python else [program]


@contextmanager
def ended(server: Server) -> Iterator[Server]:
    """A server that ends with the block."""
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.end()


@contextmanager
def serving(model: str, *options: str) -> Iterator[Server]:
    """Ours, which ends with the block."""
    with ended(Ours(model, *options)) as server:
        yield server


def tokens_of(n: int, seed: int) -> list[int]:
    """At random, of every vocabulary here."""
    return np.random.default_rng(seed).integers(300, 3000, n).tolist()
