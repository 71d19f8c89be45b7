"""What Python lacks or does otherwise on Windows, made so here. Nothing of this was run on Windows."""

import io
import os
import pkgutil
import subprocess
import sys

import numpy as np
import pytest
from open_files import IN_PROC, keep_names

import snapkv_local
from snapkv_local import hardware, memory
from snapkv_local.cli import border
from snapkv_local.errors import DocumentError
from snapkv_local.storage import new_file, reads, seal, sealed


def test_all_modules_are_imported_without_modules_of_unix():
    names = [
        found.name
        for found in pkgutil.walk_packages(snapkv_local.__path__, "snapkv_local.")
        if not found.name.endswith("__main__")
    ]
    assert "snapkv_local.storage.sealed" in names
    code = (
        "import contextlib, importlib, sys\n"
        "from snapkv_local.errors import LibraryError\n"
        "for name in ('fcntl', 'resource', 'pwd', 'grp', 'termios'): sys.modules[name] = None\n"
        f"for name in {names!r}:\n"
        "    with contextlib.suppress(LibraryError, FileNotFoundError):  # of an engine that is not built\n"
        "        importlib.import_module(name)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.fixture
def windows(monkeypatch):
    """No modules and functions of Unix, and open files keep their names."""
    monkeypatch.setattr(new_file, "fcntl", None)
    monkeypatch.setattr(hardware, "resource", None)
    monkeypatch.setattr(memory, "resource", None)
    for name in ("pread", "preadv", "posix_fallocate"):
        monkeypatch.delattr(os, name, raising=False)
    keep_names(monkeypatch)


def write(path, data):
    seal.write(path, "document", {"a": 1}, [seal.Block("x", data.dtype, data.shape, [data])])


@IN_PROC
def test_sealed_files_are_written_read_and_left_out(windows, tmp_path):
    path, data = tmp_path / "a", np.arange(3 * 2**20, dtype=np.uint32)  # several pieces
    write(path, data)
    for mapped in (True, False):
        with sealed.Sealed.open(path, "document", mapped) as file:
            assert (file.array("x") == data).all()
    _, found, n_bytes = sealed.peek(path, "document", ["x"])
    assert (found["x"] == data).all() and n_bytes == path.stat().st_size
    write(path, data[:9])  # in its place
    with pytest.raises(ZeroDivisionError), new_file.NewFile(tmp_path / "b", 10):
        raise ZeroDivisionError
    assert [found.name for found in tmp_path.iterdir()] == ["a"]


@IN_PROC
def test_a_file_that_is_open_is_not_replaced(windows, tmp_path):
    """Said before anything is computed, and where it was opened meanwhile."""
    path, data = tmp_path / "a", np.arange(9, dtype=np.uint32)
    write(path, data)
    with sealed.Sealed.open(path, "document") as file:
        held = file.array("x")
    for again in (lambda: new_file.check_space(path, 10), lambda: write(path, data[:3])):
        with pytest.raises(DocumentError, match="Windows replaces no file that is open; close"):
            again()
    del file, held
    with pytest.raises(DocumentError, match="is open here"), new_file.NewFile(path, 10):
        fd = os.open(path, os.O_RDONLY)
    os.close(fd)
    assert [found.name for found in tmp_path.iterdir()] == ["a"]
    write(path, data[:3])


def test_what_is_not_a_terminal_gets_utf8(monkeypatch):
    """So that an answer in a file is what --file reads; code pages lack most letters."""
    streams = {name: io.TextIOWrapper(io.BytesIO(), "cp1252") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    border.open_streams()
    assert sys.stdout.encoding == "cp1252"
    monkeypatch.delenv("PYTHONIOENCODING")
    border.open_streams()
    print("水")
    print("пар", file=sys.stderr)
    assert [stream.encoding for stream in streams.values()] == ["utf-8", "utf-8"]
    sys.stdout.flush()
    assert streams["stdout"].buffer.getvalue().decode().strip() == "水"


def test_reads_from_a_place(windows, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes(range(100)))
    fd = os.open(path, os.O_RDONLY)
    buffer = bytearray(8)
    assert reads.read_at(fd, 3, 50) == bytes([50, 51, 52])
    assert reads.read_into(fd, memoryview(buffer), 95) == 5
    assert buffer == bytes([95, 96, 97, 98, 99, 0, 0, 0])
    assert reads.read_into(fd, memoryview(buffer), 100) == 0
    os.close(fd)


class Kernel32:
    """Of its functions those that we call, with 8 GiB, of which 3 are free, and a peak of 7 bytes."""

    class GetCurrentProcess:
        def __new__(cls):
            return 1

    class K32GetProcessMemoryInfo:
        def __new__(cls, process, address, size):
            counters = hardware._MemoryCounters.from_address(address)
            assert counters.size == size
            counters.peak = 7
            return 1

    @staticmethod
    def GlobalMemoryStatusEx(pointer):
        status = pointer._obj
        assert status.length == 64  # of MEMORYSTATUSEX
        status.total, status.available = 8 << 30, 3 << 30
        return 1


def test_memory_is_asked_of_windows(windows, monkeypatch):
    monkeypatch.setattr(hardware, "_windows", lambda: Kernel32)
    monkeypatch.setattr(hardware, "_lines", lambda path: [])
    found = hardware.read_hardware()
    assert (found.ram_total, found.ram_available) == (8 << 30, 3 << 30)
    assert hardware.peak_rss() == 7
    assert memory.left() is None
