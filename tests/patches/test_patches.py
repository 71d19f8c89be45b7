"""scripts/patches.py and scripts/patchfile.py, on a small queue."""

import random
from pathlib import Path

import pytest

import patches
import patchfile
from patches import PatchError

BASE = "".join(f"line {i};\n" for i in range(40))
HEADER = "Description: a hook\nWhy: for\n the test\nHooks: snapkv_hook\nFiles: src/a.cpp\n\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def hooked(text: str) -> str:
    return text.replace("line 20;\n", "line 20;\nsnapkv_hook();\n")


@pytest.fixture
def source(tmp_path):
    write(tmp_path / "source/src/a.cpp", BASE)
    write(tmp_path / "source/src/b.cpp", BASE)
    return tmp_path / "source"


@pytest.fixture
def edited(tmp_path):
    write(tmp_path / "edited/src/a.cpp", hooked(BASE))
    write(tmp_path / "edited/src/b.cpp", BASE)
    return tmp_path / "edited"


@pytest.fixture
def queue(tmp_path, source, edited):
    """One patch, written by export from its header."""
    write(tmp_path / "queue/series", "# order\n0001-hook.patch\n")
    write(tmp_path / "queue/0001-hook.patch", HEADER)
    queue = tmp_path / "queue"
    patches.export(patches.load_queue(queue), source, edited, queue)
    return queue


def test_export_and_apply_are_inverse(queue, source, edited):
    loaded = patches.load_queue(queue)
    assert loaded[0].fields["Why"] == "for the test"
    patches.check(loaded, source, queue)
    patches.apply(loaded, source)
    assert (source / "src/a.cpp").read_bytes() == (edited / "src/a.cpp").read_bytes()


@pytest.mark.parametrize("seed", range(20))
def test_any_edit_survives_diff_and_parse(seed):
    rng = random.Random(seed)
    old = [rng.choice(["{\n", "}\n", "\n", "x\x0cy\n", f"{i}\n"]) for i in range(rng.randrange(60))]
    new = list(old)
    for _ in range(5):
        at = rng.randrange(len(new) + 1)
        new[at : at + rng.randrange(3)] = [f"new {i}\n" for i in range(rng.randrange(3))]
    a, b = "".join(old), "".join(new).removesuffix("\n" if seed % 2 else "")
    text = patchfile.diff("src/a.cpp", a, b)
    hunks = patchfile.parse("p", HEADER + text).diffs.get("src/a.cpp", ())
    assert patchfile.apply_hunks("p", "src/a.cpp", hunks, a) == b


def test_patch_that_does_not_fit_stops_with_its_name(queue, source):
    write(source / "src/a.cpp", "line -1;\n" + BASE)  # one line off: no fuzz, no offset
    before = (source / "src/a.cpp").read_bytes()
    with pytest.raises(PatchError, match=r"0001-hook\.patch does not apply: src/a\.cpp"):
        patches.apply(patches.load_queue(queue), source)
    assert (source / "src/a.cpp").read_bytes() == before


def test_missing_hook_stops(queue, source):
    patch = queue / "0001-hook.patch"
    patch.write_text(patch.read_text().replace("Hooks: snapkv_hook", "Hooks: snapkv_other"))
    with pytest.raises(PatchError, match=r"0001-hook\.patch: hook snapkv_other is not in"):
        patches.apply(patches.load_queue(queue), source)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER.replace("Why: for\n the test\n", ""), "the header lacks Why"),
        ("no field\n" + HEADER, "cannot read the header line 'no field'"),
        (
            HEADER + "--- a/src/b.cpp\n+++ b/src/b.cpp\n@@ -1 +1 @@\n-a\n+b\n",
            "changes src/b.cpp: list it",
        ),
        (HEADER + "--- a/src/a.cpp\n+++ b/src/a.cpp\n@@ -1,2 +1 @@\n-a\n", "ends early"),
        (HEADER + "--- a/src/a.cpp\n+++ b/src/a.cpp\n", "no hunk"),
        (HEADER + "--- src/a.cpp\n+++ src/a.cpp\n", "expected '--- a/FILE'"),
    ],
)
def test_malformed_patch_is_refused(text, message):
    with pytest.raises(PatchError, match=message):
        patchfile.parse("0001-hook.patch", text)


def test_file_belongs_to_one_patch(queue):
    write(queue / "series", "0001-hook.patch\n0002-again.patch\n")
    write(queue / "0002-again.patch", HEADER)
    with pytest.raises(
        PatchError, match=r"0002-again\.patch: src/a\.cpp belongs to 0001-hook\.patch"
    ):
        patches.load_queue(queue)


def test_series_names_a_missing_patch(queue):
    write(queue / "series", "0009-gone.patch\n")
    with pytest.raises(PatchError, match=r"0009-gone\.patch, which is missing"):
        patches.load_queue(queue)


def test_export_refuses_a_change_outside_the_queue(queue, source, edited):
    write(edited / "src/b.cpp", hooked(BASE))
    with pytest.raises(
        PatchError, match=r"src/b\.cpp is changed and in no patch.*0001-hook\.patch"
    ):
        patches.export(patches.load_queue(queue), source, edited, queue)


def test_export_refuses_a_new_file(queue, source, edited):
    write(edited / "src/c.cpp", "")
    with pytest.raises(PatchError, match="move it to csrc/"):
        patches.export(patches.load_queue(queue), source, edited, queue)


def test_export_refuses_a_deleted_file(queue, source, edited):
    (edited / "src/b.cpp").unlink()
    with pytest.raises(PatchError, match=r"lacks src/b\.cpp"):
        patches.export(patches.load_queue(queue), source, edited, queue)


def broken_rules(new: str) -> list[str]:
    text = HEADER + patchfile.diff("src/a.cpp", BASE, new)
    return patches.stats([patchfile.parse("p", text)])[1]


def test_a_hook_may_add_lines_and_replace_a_line_by_itself_and_more():
    assert broken_rules(hooked(BASE)) == []
    assert broken_rules(BASE.replace("line 20;", "if (!snapkv) line 20;")) == []


def test_a_plain_deletion_breaks_the_rules():
    assert "deletes 'line 20;'" in broken_rules(BASE.replace("line 20;\n", ""))[0]
    assert (
        "deletes 'line 20;'" in broken_rules(BASE.replace("line 20;\n", "something_else();\n"))[0]
    )


def test_more_than_150_added_lines_break_the_rules():
    assert broken_rules(BASE + "x\n" * 150) == []
    assert "151 added lines" in broken_rules(BASE + "x\n" * 151)[0]


def test_rebase_moves_a_hunk_with_its_neighbours(queue, source, tmp_path):
    moved = "".join(f"new {i};\n" for i in range(9)) + BASE.replace("line 30;\n", "")
    write(tmp_path / "new/src/a.cpp", moved)
    assert (
        patches.rebase(patches.load_queue(queue), source, tmp_path / "new", tmp_path / "out") == []
    )
    assert (tmp_path / "out/src/a.cpp").read_text() == hooked(moved)


def test_rebase_reports_a_conflict_and_goes_on(queue, source, tmp_path):
    changed = BASE.replace("line 20;", "other 20;")
    write(tmp_path / "new/src/a.cpp", changed)
    loaded = patches.load_queue(queue)
    conflicts = patches.rebase(loaded, source, tmp_path / "new", tmp_path / "out")
    assert len(conflicts) == 1
    assert "0001-hook.patch: src/a.cpp" in conflicts[0]
    assert "+snapkv_hook();" in conflicts[0]
    assert (tmp_path / "out/src/a.cpp").read_text() == changed
