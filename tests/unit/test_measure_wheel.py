"""The measurement of a wheel, without building one or installing anything."""

import sys
import zipfile

import pytest

import wheel as measure_wheel
from licenses import LICENSES

NAMES = ["LICENSE", *(f"{name}.txt" for name in LICENSES)]


def write(path, *more):
    """A wheel with a library, the licences and a module."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("snapkv_local/lib/build.json", '{"options": []}')
        archive.writestr("snapkv_local/lib/libllama.so", b"\0" * 5000)
        archive.writestr("snapkv_local/needle/needle.gguf", b"\1" * 700)
        archive.writestr("snapkv_local/__init__.py", "x = 1\n")
        for name in NAMES:
            archive.writestr(f"snapkv_local/licenses/{name}", "MIT")
        for name in more:
            archive.writestr(name, b"")
    return path


def test_what_a_wheel_consists_of(tmp_path):
    found = measure_wheel.contents(write(tmp_path / "a.whl", "snapkv_local/lib/"))
    sizes = {part: values["bytes"] for part, values in found["parts"].items()}
    assert sizes == {"libraries": 5015, "model": 700, "python": 6, "licences": 3 * len(NAMES)}
    assert found["parts"]["libraries"]["files"] == 2
    assert found["bytes_unpacked"] == sum(sizes.values()) > found["bytes"] > 0
    assert (found["libraries"], found["licences"]) == (
        ["build.json", "libllama.so"],
        sorted(NAMES),
    )
    assert found["build"] == {"options": []}
    assert measure_wheel.missing_licences(found) == []


def test_licences_that_are_missing(tmp_path):
    """Those of all that is compiled in, and of what auditwheel has added."""
    found = measure_wheel.contents(
        write(tmp_path / "a.whl", "snapkv_local.libs/libgomp-a34b3233.so.1.0.0")
    )
    assert measure_wheel.missing_licences(found) == ["libgomp.txt"]
    found["licences"].remove("LICENSE")
    assert measure_wheel.missing_licences(found) == ["LICENSE", "libgomp.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_a_new_environment_finds_no_compiler_and_says_what_fails(tmp_path):
    place = measure_wheel.Place.__new__(measure_wheel.Place)
    place.folder, place.bin = tmp_path, tmp_path
    place.environment = {"PATH": str(tmp_path)}
    assert place.tools() == []
    with pytest.raises(SystemExit, match="failed:\nno such"):
        place.run(sys.executable, "-c", "raise SystemExit('no such')")
    script = tmp_path / "snapkv-local"
    script.write_text("#!/bin/sh\nprintf 417\n")
    script.chmod(0o755)
    found = place.ask()
    assert found["answer"] == "417"
    assert 0 <= found["seconds_to_first_token"] <= found["seconds"]
