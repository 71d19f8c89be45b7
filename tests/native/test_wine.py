"""The package on a Python for Windows, with wine: the command line, the server, files and what ends them.

`make test.mingw` makes that Python (scripts/windows_python.py) and runs these tests.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.native

PATIENCE = 600  # seconds until an answer is missed, however busy the machine
QUESTION = "What is the access code of the harbour office?"
FILLER = (
    "The tide was low, and nobody had seen the ferry. In Köln the bells rang, в порту было тихо. "
)
TEXT = f"{FILLER * 8}\nThe access code of the harbour office is 58213.\n{FILLER * 8}".replace(
    "\n", "\r\n"
)
SMALL = ("--threads", "1", "--ctx", "4k", "--budget", "128")


class Windows:
    """Runs the Python for Windows, in a folder whose name has a space and letters of two alphabets."""

    def __init__(self, python: Path, prefix: Path, folder: Path) -> None:
        self.python, self.folder = python, folder
        self.environment = {
            **os.environ,
            "WINEPREFIX": str(prefix),
            "WINEDEBUG": "-all",
            "PYTHONDONTWRITEBYTECODE": "",  # it starts in a third of the time
        }
        prefix.mkdir(exist_ok=True)
        # made before its first program runs, which would wait for it within its own time
        for command in (
            ["wineboot", "-i"],
            ["wine", "reg", "add", r"HKCU\Software\Wine", "/v", "Version", "/d", "win10", "/f"],
        ):
            subprocess.run(command, env=self.environment, capture_output=True, check=True)

    def command(self, *args: object) -> list[str]:
        return ["wine", str(self.python), *map(str, args)]

    def run(
        self, *args: object, given: str | None = "", code: int = 0, patience: float = PATIENCE
    ) -> subprocess.CompletedProcess[str]:
        """stdout and stderr, which have to be UTF-8.

        Args:
            given: what stdin has; None for NUL.
            code: the exit code that it has to end with.
            patience: seconds.
        """
        result = subprocess.run(
            self.command(*args),
            **({"stdin": subprocess.DEVNULL} if given is None else {"input": given}),
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            encoding="utf-8",
            timeout=patience,
        )
        assert result.returncode == code, f"{result.stdout}\n{result.stderr}"
        return result

    def snapkv(self, *args: object, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "snapkv_local", *args, **options)

    def path(self, path: Path) -> str:
        """As Windows writes it: wine has the root of this system as Z:."""
        return "Z:" + str(path).replace("/", "\\")


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Windows:
    python = os.environ.get("SNAPKV_WINDOWS_PYTHON")
    if python is None:
        pytest.skip("run by `make test.mingw`, which makes a Python for Windows")
    if shutil.which("wine") is None:
        pytest.skip("no wine on this machine")
    folder = tmp_path_factory.mktemp("wine") / "Документы é 1"
    folder.mkdir()
    (folder / "гавань ü.txt").write_bytes(TEXT.encode())
    return Windows(Path(python).resolve(), Path(python).resolve().parent.parent / "wine", folder)


def test_a_question_about_a_file_with_its_vault_in_another(windows: Windows) -> None:
    """Paths with and without a drive's letter; the vault's file is gone at the end."""
    vault = windows.folder / "Хранилище"
    vault.mkdir()
    file = windows.path(windows.folder / "гавань ü.txt")
    result = windows.snapkv(
        *("run", "needle", *SMALL, "--file", file, "--vault", "Хранилище", "--json"),
        given=QUESTION,
    )
    answer = json.loads(result.stdout)
    assert "58213" in answer["text"]
    assert answer["n_kept"] == 128 < answer["n_prompt"]
    assert list(vault.iterdir()) == []


def test_text_that_no_code_page_has(windows: Windows) -> None:
    """Words of the command line come back as they were; a document comes from stdin."""
    result = windows.snapkv("run", "needle", "--file", "нет ü水.txt", "-p", "?", code=2)
    assert "нет ü水.txt" in result.stderr
    result = windows.snapkv("run", "needle", *SMALL, "--file", "-", "-p", QUESTION, given=TEXT)
    assert "58213" in result.stdout
    assert "prompt tokens" in result.stderr


def test_without_stdin_no_chat_opens(windows: Windows) -> None:
    assert "no question" in windows.snapkv("run", "needle", given=None, code=2).stderr


def test_a_document_is_read_once(windows: Windows) -> None:
    windows.snapkv(
        "ingest", "needle", *SMALL[:4], "--file", "гавань ü.txt", "--out", "гавань.snapkv"
    )
    asked = windows.snapkv("ask", "гавань.snapkv", QUESTION, "--threads", "1", "--budget", "128")
    assert "58213" in asked.stdout


FILES = """
import gc, os, pathlib, sys
from snapkv_local import Document, Llama, SnapKVConfig
from snapkv_local.errors import DocumentError
from snapkv_local.models.resolve import needle_model

text = pathlib.Path("гавань ü.txt").read_text(encoding="utf-8")
settings = SnapKVConfig(budget=128, decode_cells=64, vault="ram")
make = lambda: Llama(str(needle_model()), n_ctx=4096, n_threads=1, snapkv=settings, verbose=False)
question = [{"role": "user", "content": text + "\\n\\nWhat is the access code of the harbour office?"}]
def ask(llm, messages):
    done = llm.create_chat_completion(messages, temperature=0, max_tokens=32)
    return done["choices"][0]["message"]["content"]

llm = make()
first = ask(llm, question)
assert "58213" in first, first
llm.save_session("беседа.snapkv")
llm.save_session("беседа.snapkv")  # in its place

other = make()
other.load_session("беседа.snapkv")
answer = {"role": "assistant", "content": first}
turns = [*question, answer, {"role": "user", "content": "Who had seen the ferry?"}]
assert ask(other, turns) == ask(llm, turns)
assert other.last_prefill.n_cached > 500, other.last_prefill

llm.ingest(text, "текст.snapkv")
opened = Document.open("текст.snapkv")
for change in (lambda: llm.ingest(text, "текст.snapkv"), lambda: os.replace("гавань ü.txt", "текст.snapkv")):
    try:
        change()
    except (DocumentError, PermissionError) as e:
        assert "Windows replaces no file that is open" in str(e) or isinstance(e, PermissionError), e
    else:
        raise SystemExit("a file that is open was replaced")
del opened
gc.collect()
llm.ingest(text, "текст.snapkv")
assert not [name for name in os.listdir() if "partial" in name], os.listdir()
print("done")
"""


def test_sessions_and_documents_in_python(windows: Windows) -> None:
    """Saved, loaded and replaced; and refused while somebody has them open."""
    (windows.folder / "files.py").write_text(FILES, encoding="utf-8")
    assert windows.run("-X", "utf8", "files.py").stdout.strip() == "done"


READER = """
import subprocess, sys
command = [sys.executable, "-m", "snapkv_local", *sys.argv[1:]]
process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
process.stdout.close()
said = process.stderr.read().decode()
print(process.wait(), "Error" in said, said)
"""


def test_a_reader_that_has_gone_is_no_error(windows: Windows) -> None:
    (windows.folder / "reader.py").write_text(READER)
    said = windows.run(
        "-X", "utf8", "reader.py", "run", "needle", *SMALL, "-p", "Hello", "-n", "9"
    ).stdout
    assert said.startswith("141 False"), said


@pytest.mark.slow
def test_a_processor_is_proven(windows: Windows) -> None:
    """As `doctor` proves each device: prefills against plain evaluation, and kept rows."""
    windows.snapkv("doctor", "--prove", "--device", "CPU", "--out", "proof.json", patience=3600)
    record = (windows.folder / "proof.json").read_text(encoding="utf-8")
    differences = re.findall(r'"max_diff(?:_cpu)?": ([^,}\s]+)', record)
    assert len(differences) > 3 and set(map(float, differences)) == {0.0}, record


class Server:
    """`serve` in its own process; a file with a signal's name has it raised there, as the system would."""

    SIGNAL = """
import pathlib, signal, threading, time
from snapkv_local.__main__ import main
def wait():
    file = pathlib.Path("signal")
    while not file.exists():
        time.sleep(0.1)
    signal.raise_signal(getattr(signal, file.read_text()))
threading.Thread(target=wait, daemon=True).start()
main()
"""

    def __init__(self, windows: Windows, *options: object) -> None:
        self.signal = windows.folder / "signal"
        self.signal.unlink(missing_ok=True)
        (windows.folder / "serve.py").write_text(self.SIGNAL)
        self.process = subprocess.Popen(
            windows.command("serve.py", "serve", "needle", *SMALL, "--parallel", 1, *options),
            env=windows.environment,
            cwd=windows.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        assert self.process.stdout is not None and self.process.stderr is not None
        self.url = self.process.stdout.readline().strip()
        self.said: list[str] = []
        self.reader = threading.Thread(target=self.said.extend, args=(self.process.stderr,))
        self.reader.start()
        self.client = httpx.Client(base_url=self.url, trust_env=False, timeout=PATIENCE)
        wait_until_ready(self.client, self.process)

    def end(self, name: str) -> tuple[int, str]:
        """Exit code, and what stderr had."""
        new = self.signal.with_name("signal.new")
        new.write_text(name)
        new.replace(self.signal)
        code = self.process.wait(PATIENCE)
        self.reader.join(PATIENCE)
        return code, "".join(self.said)

    def chat(self, content: str, **options: Any) -> dict[str, Any]:
        response = self.client.post("/v1/chat/completions", json=request(content, **options))
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found


def request(content: str, **options: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    return {"messages": messages, "max_tokens": 32, "temperature": 0, **options}


def wait_until_ready(client: httpx.Client, process: subprocess.Popen[Any]) -> None:
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends and process.poll() is None:
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError("the server is not ready")


@pytest.fixture
def serve(windows: Windows) -> Iterator[Callable[..., Server]]:
    """Starts servers, which are killed at the end."""
    started: list[Server] = []

    def serve(*options: object) -> Server:
        started.append(Server(windows, "--port", 0, *options))
        return started[-1]

    yield serve
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
        each.client.close()


def test_conversations_rest_in_files_that_outlive_the_server(
    windows: Windows, serve: Callable[..., Server]
) -> None:
    """Answers, streams and schemas; Ctrl-Break, and the end of a console, write what is in memory."""
    options = ("--cache-dir", "Беседы é", "--cache-ram", "64MiB")
    server = serve(*options)
    asked = f"{TEXT}\n\n{QUESTION}"
    first = server.chat(asked)
    text = first["choices"][0]["message"]["content"]
    assert "58213" in text
    with server.client.stream(
        "POST", "/v1/chat/completions", json=request("ü水", stream=True)
    ) as r:
        lines = [line for line in r.iter_lines() if line.startswith("data: ")]
    assert len(lines) > 2 and lines[-1] == "data: [DONE]"
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    obeyed = server.chat("Yes?", response_format=form, max_tokens=40)
    assert obeyed["choices"][0]["message"]["content"].lstrip().startswith("{")

    port = server.url.rpartition(":")[2]
    said = windows.snapkv("serve", "needle", "--port", port, code=1).stderr
    assert f"{port}: cannot be listened on" in said

    with server.client.stream("POST", "/v1/chat/completions", json=request("Hi", stream=True)) as r:
        next(r.iter_lines())  # and the client goes
    code, said = server.end("SIGBREAK")
    assert (code, "Traceback" in said) == (0, False), said
    assert list((windows.folder / "Беседы é").glob("conversation-*.snapkv"))

    again = serve(*options).chat(asked)
    assert again["choices"][0]["message"]["content"] == text
    assert again["usage"]["snapkv"]["n_cached"] > 0


def test_ctrl_c_in_a_console_ends_the_server(windows: Windows) -> None:
    """A console of its own, as a person has it."""
    pty = pytest.importorskip("pty")
    process_id, console = pty.fork()
    if process_id == 0:
        os.chdir(windows.folder)
        command = windows.command("-m", "snapkv_local", "serve", "needle", *SMALL, "--port", 0)
        os.execvpe("wine", command, {**windows.environment, "TERM": "xterm"})
    said, sent, ends = b"", False, time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        try:
            said += os.read(console, 65536)
        except OSError:  # of a console whose program has ended
            break
        # what the log says once the model is loaded and the server listens
        if not sent and b"Started server process" in said:
            sent = True
            os.write(console, b"\x03")
    _, status = os.waitpid(process_id, 0)
    os.close(console)
    assert os.waitstatus_to_exitcode(status) == 130, said.decode(errors="replace")
    assert b"Traceback" not in said
