"""Files that change while they are mapped."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from snapkv_local.errors import DocumentError
from snapkv_local.mapped import MappedFile
from snapkv_local.storage import seal, sealed


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a"
    path.write_bytes(bytes(10_000))
    return path


def write(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"x")


CHANGES = {
    "cut": (lambda path: os.truncate(path, 5), "was cut in place from 10,000 to 5 bytes"),
    "written to": (write, "was written to in place"),
    "longer": (lambda path: os.truncate(path, 20_000), "was written to in place"),
    "emptied": (lambda path: path.write_bytes(b""), "was cut in place from 10,000 to 0 bytes"),
    "read": (lambda path: path.read_bytes(), None),
    "removed": (lambda path: path.unlink(), None),
    "renamed": (lambda path: path.rename(path.with_name("b")), None),
}


@pytest.mark.parametrize(("change", "says"), CHANGES.values(), ids=CHANGES)
def test_what_is_done_in_place_is_seen(path, change, says):
    file = MappedFile(path)
    assert file.change() is None
    os.utime(path, ns=(0, file._before.st_mtime_ns))  # of the last access
    change(path)
    assert file.change() == says


def test_a_file_in_its_place_is_another_one(path):
    file = MappedFile(path)
    other = path.with_name("b")
    other.write_bytes(b"x")
    other.replace(path)
    assert file.change() is None
    os.truncate(path, 0)
    assert file.change() is None


def test_it_is_closed_with_its_object(path):
    before = len(list(Path("/dev/fd").iterdir()))
    files = [MappedFile(path) for _ in range(5)]
    assert len(list(Path("/dev/fd").iterdir())) == before + 5
    del files
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_reading_what_was_cut_off_would_end_the_process(tmp_path):
    """Why all this is: if a system gave an error instead, the checks could go."""
    path = tmp_path / "a"
    seal.write(path, "document", {}, [seal.Block("x", np.uint8, (2**20,), [bytes(2**20)])])
    script = (
        "import os, sys; from snapkv_local.storage.sealed import Sealed; "
        "file = Sealed.open(sys.argv[1], 'document'); x = file.array('x'); "
        "os.truncate(sys.argv[1], 4096); print(file.file.change()); x.sum()"
    )
    result = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True)
    assert result.stdout.startswith("was cut in place from")
    assert result.returncode < 0


def test_a_file_that_is_cut_while_it_is_checked(tmp_path, monkeypatch):
    path = tmp_path / "a"
    seal.write(path, "document", {}, [seal.Block("x", np.uint8, (9,), [bytes(9)])])
    monkeypatch.setattr(
        "snapkv_local.storage.sealed._check_pieces", lambda path, *_: os.truncate(path, 5000)
    )
    for mapped in (True, False):
        with pytest.raises(DocumentError, match=r"was cut in place .* while it was checked"):
            sealed.Sealed.open(path, "document", mapped)
        seal.write(path, "document", {}, [seal.Block("x", np.uint8, (9,), [bytes(9)])])


def test_what_is_read_into_memory_stays(tmp_path):
    path, data = tmp_path / "a", np.arange(2**20, dtype=np.uint32)
    seal.write(path, "document", {}, [seal.Block("x", np.uint32, data.shape, [data])])
    n_bytes = path.stat().st_size
    file = sealed.Sealed.open(path, "document", mapped=False)
    os.truncate(path, 0)
    assert (file.file, file.n_bytes) == (None, n_bytes)
    np.testing.assert_array_equal(file.array("x"), data)
    assert not file.array("x").flags.writeable
