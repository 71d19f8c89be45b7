"""Every command line of README and the documentation runs as it stands there, and succeeds.

Each page has a folder with the files that it names, and its lines run in it, in their order. A line that
writes no file runs on the first page that has it. `model.gguf` is the package's own model, as is `demo`
where it names a model, and owner/repo is a repository with it on a hub of our own. What takes long on
purpose gets shorter: see SHORTER and SMALLER. `plan demo` is the demo model's.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from docs_code import DOCS, ROOT, code_lines
from made_pdf import pdf

from snapkv_local.models.resolve import needle_model

PAGES = [*sorted(DOCS.glob("*.md")), ROOT / "README.md"]
PAGES.remove(DOCS / "cli.md")  # what --help says

# added to a command of the page, where the last of two values counts
SHORTER = {
    "bench make-model": "--shape tiny --out llama31-8b-q4_0.gguf --force",
    "demo": "--threads 1 --tokens 1k",
    "run": "--threads 1 --max-tokens 2",
    "ask": "--threads 1 --max-tokens 2",
    "plan --measure": "--threads 1 --ctx 1k --decode-cells 256",
    "ingest": "--threads 1 --force",
    "serve": "--threads 1 --port 0",
    "extract": "--threads 1",
    "inspect": "--threads 1",
    "bench": "--threads 1 --prompt-tokens 200 --budget 64 --decode-tokens 2 --repeat 1",
    "eval": "--threads 1 --lengths 400 --cases 1 --budgets 64",
    "tune": "--threads 1 --length 300 --minutes 0.02 --target-kl 100",
}

# given to a command whose page says nothing of a budget, as the files are shorter than the usual one
SMALLER = {name: ["--budget", "256"] for name in ("run", "ask", "inspect")}

# what a page takes for granted; `whole` is the command without what makes it shorter
INGEST = "snapkv-local ingest model.gguf --file book.txt --out {}"
RECORD = "whole eval needle --tasks needle --depths 2 --cases 2 --questions 1 --lengths {} --policies snapkv "
RECORD += "--budgets 64 --threads 1 --json {}"
BEFORE = {
    "eval.md": [RECORD.format(300, "short.json"), RECORD.format(400, "long.json")],
    "documents.md": [INGEST.format("book.snapkv")],
    "server.md": ["mkdir books", INGEST.format("books/karenina.snapkv")],
    "README.md": ["cp results/bench-amd-epyc-2-cores.json theirs.json"],
    "benchmark.md": ["snapkv-local bench model.gguf --prompt-tokens 200 --json mine.json"],
}

# the command `snapkv-local` of a page. A server is asked for its page, and gets Ctrl-C
STAND_IN = """#!{python}
import os, signal, subprocess, sys, urllib.request
sys.path.insert(0, {root!r})
from snapkv_local.process import of_module

shorter, smaller = {shorter!r}, {smaller!r}
words = sys.argv[1:]
if not {{"--budget", "--keep-ratio", "--full", "--profile"}} & set(words):
    words += smaller.get(words[0], [])
for name in shorter:
    if words[0] == name.split()[0] and set(name.split()) <= set(words):
        words += shorter[name].split()
        break
if words[0] != "plan":
    words[1:] = ["model.gguf" if word == "demo" else word for word in words[1:]]
command = [*of_module("snapkv_local"), *words]
if "serve" not in words:
    os.execv(sys.executable, command)
server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
url = server.stdout.readline().strip()
print(url)
opener = urllib.request.build_opener(urllib.request.ProxyHandler({{}}))
assert opener.open(url.replace("0.0.0.0", "127.0.0.1") + "/", timeout=60).status == 200
server.send_signal(signal.SIGINT)
sys.exit(server.wait(60) != 130)
"""


def commands(page: Path) -> list[str]:
    """The page's lines that run snapkv-local, for a shell."""
    lines = [line.strip() for line in code_lines(page.read_text(encoding="utf-8"))]
    return [
        # "..." stands for what the reader adds
        line.replace(" ...", " ").replace("/books/", "books/")
        for line in lines
        if any(Path(word).name == "snapkv-local" for word in line.split())
    ]


SENTENCES = (
    "Anna finds the letter in the library. The report was signed by Mr Hale. Valve seven is open. "
    "The pump costs 417 euros, and it was decided to repair it. In the harbour of {n} stood a tower of "
    "{n} steps. Nobody counted them after the winter, when the ferry came {n} days late with {n} crates.\n\n"
)


def text_of(n: int) -> str:
    return "".join(SENTENCES.format(n=100 + 7 * i) for i in range(n))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages name, and the command."""
    folder = tmp_path_factory.mktemp("desk")
    for name in ("book.txt", "doc.txt", "report.txt", "report.md", "minutes.md", "handbook.txt"):
        (folder / name).write_text(text_of(6), encoding="utf-8")
    (folder / "queue.py").write_text(
        "class Queue:\n    def drop_oldest(self):\n        del self.items[0]\n\n\n"
        "def longest(queues):\n    return max(queues, key=len)\n",
        encoding="utf-8",
    )
    case = {"document": text_of(6), "question": "Who signed the report?", "answer": "Mr Hale"}
    (folder / "mine.jsonl").write_text(json.dumps(case) + "\n", encoding="utf-8")
    (folder / "report.pdf").write_bytes(pdf("The report was signed by Mr Hale."))
    (folder / "keys.txt").write_text("a key\n", encoding="utf-8")
    station = (ROOT / "snapkv_local" / "demo" / "station.txt").read_text(encoding="utf-8")
    (folder / "station.txt").write_text(station[:3000], encoding="utf-8")
    for name in ("model.gguf", "small.gguf"):
        (folder / name).symlink_to(needle_model())
    (folder / "results").symlink_to(ROOT / "results")
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name, shorter, smaller in (("snapkv-local", SHORTER, SMALLER), ("whole", {}, {})):
        command = folder / ".venv" / "bin" / name
        given = {"python": sys.executable, "root": str(ROOT), "shorter": shorter}
        command.write_text(STAND_IN.format(**given, smaller=smaller))
        command.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def done() -> set[str]:
    """Lines that have run on a page, and wrote no file."""
    return set()


def without_comment(line: str) -> str:
    return re.sub(r"\s+#.*", "", line).removeprefix(".venv/bin/")


def files_of(folder: Path) -> dict[Path, int]:
    """When each file was written last."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page(page, desk, done, fake_hub, tmp_path):
    lines = commands(page)
    if not lines:
        pytest.skip("no commands")
    folder = tmp_path / "desk"
    shutil.copytree(desk, folder, symlinks=True)
    fake_hub.files = {"Model-Q4_K_M.gguf": needle_model().read_bytes()}
    environment = {
        **os.environ,
        **fake_hub.environment(tmp_path / "home"),
        "PATH": f"{folder}/.venv/bin:{os.environ['PATH']}",
        "PYTHONUNBUFFERED": "1",
    }
    before = BEFORE.get(page.name, [])
    for line in (*before, *lines):
        if without_comment(line) in done:
            continue
        files = files_of(folder)
        result = subprocess.run(
            ["bash", "-o", "pipefail", "-c", line],
            cwd=folder,
            env=environment,
            input="What is open?\n",
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, f"{line}\n{result.stdout}{result.stderr}"
        assert result.stdout or line in before, f"{line}: prints nothing"
        if files_of(folder) == files:
            done.add(without_comment(line))
