#!/usr/bin/env python3
"""Runs `run`, `ingest` and `serve` with less and less address space, as `ulimit -v` would.

    scripts/memory_walk.py [--json FILE] [--from MB] [--to MB] [--step MB] [COMMAND...]

Each must end with an exit status and a last line on stderr that says why, or answer: never a
traceback, never a signal, never silence. The exit status of this script is 1 if one does not. Below
the address space that Python itself needs, the words are Python's or the system's; these lines are
marked. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

MB = 1024 * 1000  # `ulimit -v` counts KiB, and 600000 is what people write
SECONDS = 300
MODEL = ("demo", "--ctx", "8k", "--threads", "1")
QUESTION = "In one word: what is the capital of France?"
# what loads Python and no more: below the space that it needs, nobody could say anything of ours
NOTHING = [sys.executable, "-c", "import snapkv_local.__main__"]


@dataclass(frozen=True)
class Outcome:
    """What one process did.

    Attributes:
        command: of snapkv-local.
        mb: its address space, in units of 1,024,000 bytes.
        status: exit status; negative for a signal, None if it had to be ended.
        said: the last line on stderr, or what a request got.
        fault: what it must not do, or "".
        python: whether Python could start at all.
    """

    command: str
    mb: int
    status: int | None
    said: str
    fault: str
    python: bool


def start(command: list[str], mb: int, err: IO[str], **more: Any) -> subprocess.Popen[str]:
    """A process with so much address space."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (mb * MB, mb * MB))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stderr=err, text=True, preexec_fn=limit, **more
    )


def answer(url: str) -> str:
    """What a request got: status, and the message of an error."""
    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 4}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            return f"answered with {response.status}"
    except urllib.error.HTTPError as e:
        return f"answered with {e.code}: {json.load(e)['error']['message']}"
    except OSError as e:
        return f"no answer ({e})"


def serve(process: subprocess.Popen[str]) -> str:
    """What a request to a server gets once it is ready; "" if it has ended before."""
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    ends = time.monotonic() + SECONDS
    while url and time.monotonic() < ends and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=10):
                pass
        except OSError:  # 503 while it loads
            time.sleep(0.1)
            continue
        answer(url)
        said = answer(url)  # it lives on, whatever the first request met
        process.terminate()
        return said
    return ""


def walk(name: str, mb: int, folder: Path) -> Outcome:
    """One command within so much address space."""
    commands = {
        "run": ["run", *MODEL, "--prompt", QUESTION, "--max-tokens", "4"],
        "ingest": ["ingest", *MODEL, "--file", "text", "--out", "x.snapkv", "--force"],
        "serve": ["serve", *MODEL, "--port", "0"],
        "full": ["run", *MODEL, "--full", "--prompt", QUESTION, "--max-tokens", "4"],
        "extract": ["extract", *MODEL, "--file", "text", "--query", "pump"],
        "inspect": ["inspect", *MODEL, "--file", "text", "--prompt", "Where is the pump?"],
        "plan": ["plan", "demo", "--measure", "--ctx", "2k", "--threads", "1"],
        "doctor": ["doctor", "demo"],
        "eval": [
            *("eval", "demo", "--tasks", "needle", "--lengths", "512", "--cases", "1"),
            *("--questions", "1", "--policies", "snapkv", "--budgets", "64", "--threads", "1"),
        ],
        "tune": ["tune", "demo", "--file", "text", "--minutes", "0.01", "--threads", "1"],
    }
    command = [sys.executable, "-X", "faulthandler", "-m", "snapkv_local", *commands[name]]
    with tempfile.TemporaryFile("w+") as err:
        python = start(NOTHING, mb, subprocess.DEVNULL).wait() == 0  # type: ignore[arg-type]
        process = start(command, mb, err, stdout=subprocess.PIPE, cwd=folder)
        request = ""
        try:
            request = serve(process) if name == "serve" else ""
            process.communicate(timeout=SECONDS)
            status: int | None = process.returncode
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            status = None
        err.seek(0)
        text = err.read().strip()
    said = request or (text.splitlines() or [""])[-1]
    return Outcome(name, mb, status, said, fault(status, text, said, python), python)


def fault(status: int | None, text: str, said: str, python: bool) -> str:
    """What a process did that it must not, or ""."""
    if status is None:
        return "hangs"
    if status < 0:
        return f"signal {-status}"
    if not python:
        return ""
    if "Traceback" in text or "Fatal Python error" in text:
        return "traceback"
    if status != 0 and not said.startswith("Error: "):
        return "no line of ours"
    return "no answer" if said.startswith(("no answer", "answered with 500")) else ""


def main() -> None:
    """Walk down, and print a line for each step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commands", nargs="*", default=["run", "ingest", "serve"])
    parser.add_argument("--json", type=Path, help="file for all outcomes")
    parser.add_argument("--from", dest="first", type=int, default=1000)
    parser.add_argument("--to", dest="last", type=int, default=50)
    parser.add_argument("--step", type=int, default=50)
    given = parser.parse_args()
    os.environ.pop("PYTHONFAULTHANDLER", None)
    outcomes = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "text").write_text("The pump stands in room 4711. " * 6)
        for command in given.commands:
            for mb in range(given.first, given.last - 1, -given.step):
                outcome = walk(command, mb, folder)
                outcomes.append(outcome)
                mark = f"FAULT: {outcome.fault}" if outcome.fault else ""
                who = "" if outcome.python else "(Python cannot start) "
                print(
                    f"{command:7}{mb:5} {outcome.status!s:>5} {mark} {who}{outcome.said}",
                    flush=True,
                )
    if given.json:
        given.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    sys.exit(any(outcome.fault for outcome in outcomes))


if __name__ == "__main__":
    main()
