"""The queue of this repository: it applies on the pinned llama.cpp and keeps to its own rules."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import patches

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def source() -> Path:
    return patches.pinned_source()


@pytest.fixture(scope="module")
def queue() -> list[patches.Patch]:
    return patches.load_queue()


def test_applies_and_export_is_byte_equal(queue, source):
    patches.check(queue, source)


def test_holds_hooks_only(queue):
    _, broken = patches.stats(queue)
    assert broken == []


def test_series_names_every_patch(queue):
    assert {patch.name for patch in queue} == {p.name for p in (ROOT / "patches").glob("*.patch")}


def test_readme_gives_a_reason_for_every_file(queue):
    text = (ROOT / "patches/README.md").read_text()
    rows = re.findall(r"^\| `(.+?)` \| (.+) \|$", text, re.MULTILINE)
    assert sorted(file for file, _ in rows) == sorted(f for patch in queue for f in patch.files)


def test_applies_in_a_folder_of_a_foreign_repository(queue, source, tmp_path):
    # `git apply` prints "Skipped patch" there and exits 0
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    tree = tmp_path / "folder"
    for file in [file for patch in queue for file in patch.files]:
        (tree / file).parent.mkdir(parents=True, exist_ok=True)
        (tree / file).write_bytes((source / file).read_bytes())
    command = [sys.executable, str(ROOT / "scripts/patches.py"), "apply", str(tree)]
    subprocess.run(command, cwd=tmp_path, check=True)
    for patch in queue:
        text = "".join((tree / file).read_text() for file in patch.files)
        assert all(hook in text for hook in patch.hooks)
