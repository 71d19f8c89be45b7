"""What Python lacks or does otherwise on Windows, made so here. Nothing of this was run on Windows."""

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import snapkv_local
from snapkv_local import hardware, memory
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

    def is_open(path):
        return any(
            fd.is_symlink() and fd.resolve() == path for fd in Path("/proc/self/fd").iterdir()
        )

    def keeps_its_name(function):
        def call(path, *args, **kwargs):
            if is_open(path):
                raise PermissionError(13, "in use by another process", str(path))
            return function(path, *args, **kwargs)

        return call

    monkeypatch.setattr(Path, "replace", keeps_its_name(Path.replace))
    monkeypatch.setattr(Path, "unlink", keeps_its_name(Path.unlink))


def write(path, data):
    seal.write(path, "document", {"a": 1}, [seal.Block("x", data.dtype, data.shape, [data])])


@pytest.mark.skipif(sys.platform != "linux", reason="open files are looked up in /proc")
def test_sealed_files_are_written_read_and_left_out(windows, tmp_path):
    path, data = tmp_path / "a", np.arange(3 * 2**20, dtype=np.uint32)  # several pieces
    write(path, data)
    for mapped in (True, False):
        with sealed.Sealed.open(path, "document", mapped) as file:
            assert (file.array("x") == data).all()
    write(path, data[:9])  # in its place
    with pytest.raises(ZeroDivisionError), new_file.NewFile(tmp_path / "b", 10):
        raise ZeroDivisionError
    assert [found.name for found in tmp_path.iterdir()] == ["a"]


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
