"""What Python lacks or does otherwise on Windows, made so here. Nothing of this was run on Windows."""

import errno
import io
import os
import pkgutil
import subprocess
import sys

import click
import numpy as np
import pytest
from open_files import IN_PROC, keep_names

import snapkv_local
from snapkv_local import hardware, memory
from snapkv_local.cli import border, console
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


@IN_PROC
def test_what_killed_writers_left_is_removed(windows, tmp_path):
    """Where it is open it stays, and where it was closed a moment ago: it may be getting its name."""
    path, data = tmp_path / "a", np.arange(9, dtype=np.uint32)
    names = (".a.partial-00000001", ".a.partial-00000002", ".a.partial-00000003", ".b.partial-4")
    left, held, new, other = (tmp_path / name for name in names)
    for found in (left, held, new, other):
        found.write_bytes(b"x")
        if found != new:
            os.utime(found, (1, 1))
    with held.open("rb"):
        write(path, data)
        assert set(tmp_path.iterdir()) == {path, held, new, other}
    write(path, data)
    assert set(tmp_path.iterdir()) == {path, new, other}


class Pipe(io.TextIOWrapper):
    """A stream whose reader has gone: what Windows says is not that the pipe is broken."""

    def __init__(self, fd):
        super().__init__(io.FileIO(fd, "w"))

    def write(self, text):
        raise OSError(errno.EINVAL, "Invalid argument")


def test_a_reader_of_stdout_that_has_gone_is_no_error(monkeypatch, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    with Pipe(writer) as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        for platform, code in (("win32", border.READER_GONE), ("linux", 1)):
            monkeypatch.setattr(sys, "platform", platform)
            with pytest.raises((border.ReaderGone, OSError)) as raised, border.readers():
                click.echo("an answer")
            assert border.verdict(raised.value)[0] == code
        monkeypatch.setattr(sys, "platform", "win32")
        for error in (OSError(errno.EINVAL, "no", "a file"), OSError(errno.EIO, "no")):
            assert border.verdict(error)[0] == 1
        with (tmp_path / "a").open("w") as file:  # of a file it is an error
            monkeypatch.setattr(sys, "stdout", file)
            assert border.verdict(OSError(errno.EINVAL, "Invalid argument"))[0] == 1


def test_nobody_types_into_what_only_looks_like_a_terminal(monkeypatch):
    """NUL does there, so a program that has no stdin would wait for questions."""

    class Nul(io.StringIO):
        def isatty(self):
            return True

        def fileno(self):
            return 7

    monkeypatch.setattr(console, "_has_console_mode", lambda fd: fd != 7)
    assert console.is_typed(Nul())
    monkeypatch.setattr(sys, "platform", "win32")
    assert not console.is_typed(Nul())
    assert not console.is_typed(io.StringIO())


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
