"""Staging, and the CMake step that does it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import patches
import stage
from patches import PatchError

ROOT = Path(__file__).resolve().parents[2]
BASE = "".join(f"line {i};\n" for i in range(40))
HOOK = """\
Description: a hook
Why: for the test
Hooks: snapkv_hook
Files: src/a.cpp

--- a/src/a.cpp
+++ b/src/a.cpp
@@ -1,3 +1,4 @@
 line 0;
+snapkv_hook();
 line 1;
 line 2;
"""


@pytest.fixture
def source(tmp_path):
    source = tmp_path / "source"
    for file in ("src/a.cpp", "src/b.cpp", "ggml/c.c", "docs/not-needed.md"):
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        (source / file).write_text(BASE)
    return source


@pytest.fixture
def queue(tmp_path, monkeypatch):
    queue = tmp_path / "queue"
    queue.mkdir()
    (queue / "series").write_text("0001-hook.patch\n")
    (queue / "0001-hook.patch").write_text(HOOK)
    load_queue = patches.load_queue
    monkeypatch.setattr(stage, "load_queue", lambda: load_queue(queue))
    return queue


def times(dest: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in dest.rglob("*.c*")}


def test_stages_the_needed_part_patched(source, queue, tmp_path):
    stage.stage(source, tmp_path / "dest", unpatched=False)
    assert "snapkv_hook" in (tmp_path / "dest/src/a.cpp").read_text()
    assert (tmp_path / "dest/ggml/c.c").read_text() == BASE
    assert not (tmp_path / "dest/docs").exists()


def test_unpatched_is_the_source(source, queue, tmp_path):
    stage.stage(source, tmp_path / "dest", unpatched=True)
    assert (tmp_path / "dest/src/a.cpp").read_text() == BASE


def test_a_changed_patch_touches_only_its_files(source, queue, tmp_path):
    dest = tmp_path / "dest"
    stage.stage(source, dest, unpatched=False)
    before = times(dest)
    stage.stage(source, dest, unpatched=False)
    assert times(dest) == before
    (queue / "0001-hook.patch").write_text(HOOK.replace("+snapkv_hook();", "+snapkv_hook(1);"))
    stage.stage(source, dest, unpatched=False)
    assert {name for name, time in times(dest).items() if time != before[name]} == {"a.cpp"}


def test_edits_in_the_staged_tree_are_not_lost(source, queue, tmp_path):
    dest = tmp_path / "dest"
    stage.stage(source, dest, unpatched=False)
    file = dest / "src/a.cpp"
    file.write_text(file.read_text().replace("snapkv_hook()", "snapkv_hook(1)"))
    stage.stage(source, dest, unpatched=False)  # nothing else changed: a build takes the edit
    assert "snapkv_hook(1)" in file.read_text()

    (source / "src/b.cpp").write_text("other\n")
    with pytest.raises(PatchError, match=r"a\.cpp was edited and no patch has the edit"):
        stage.stage(source, dest, unpatched=False)
    patches.export(
        patches.load_queue(queue), source, dest_with(dest, "src/b.cpp", "other\n"), queue
    )
    stage.stage(source, dest, unpatched=False)
    assert "snapkv_hook(1)" in file.read_text()


def dest_with(dest: Path, file: str, text: str) -> Path:
    (dest / file).write_text(text)
    return dest


def test_configuring_with_a_broken_patch_stops_with_its_name(tmp_path):
    cmake = shutil.which("cmake") or shutil.which("cmake", path=Path(sys.executable).parent)
    assert cmake, "install cmake to run this test"
    project = tmp_path / "project"
    for part in ("CMakeLists.txt", "pyproject.toml"):
        (project / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / part, project / part)
    shutil.copytree(ROOT / "scripts", project / "scripts")
    (project / "vendor/llama.cpp").mkdir(parents=True)
    for part in ("pin.json", "fetch.py"):
        shutil.copyfile(ROOT / "vendor/llama.cpp" / part, project / "vendor/llama.cpp" / part)
    (project / "patches").mkdir()
    (project / "patches/series").write_text("0001-broken.patch\n")
    broken = HOOK.replace("src/a.cpp", "src/llama.cpp")
    (project / "patches/0001-broken.patch").write_text(broken)
    source = f"-DSNAPKV_LLAMA_CPP_SOURCE={patches.pinned_source()}"
    command = [cmake, "-S", str(project), "-B", str(tmp_path / "build"), source]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "0001-broken.patch does not apply: src/llama.cpp" in result.stderr


def test_versions_agree():
    version = json.loads((ROOT / "vendor/llama.cpp/pin.json").read_text())["llama_cpp_python"]
    for file in ("pyproject.toml", "requirements.txt"):
        assert f"llama-cpp-python=={version}" in (ROOT / file).read_text()
