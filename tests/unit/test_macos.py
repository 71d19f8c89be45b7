"""What is asked of macOS otherwise, and where it does not answer. Nothing of this was run on macOS."""

import errno
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from snapkv_local import hardware, memory
from snapkv_local.cli import conversations
from snapkv_local.plan import devices
from snapkv_local.storage import new_file, seal, sealed

fcntl = pytest.importorskip("fcntl")
GIB = 1 << 30
VM_STAT = """\
Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               65536.
Pages active:                            300000.
Pages inactive:                           32768.
Pages speculative:                        32768.
Pages throttled:                              0.
Pages wired down:                        100000.
"Translation faults":                 123456789.
Pages stored in compressor:              500000.
"""


@pytest.fixture
def macos(monkeypatch):
    """Programs of macOS by path, in the place of this system's; no /proc."""
    said = {"/usr/bin/vm_stat": VM_STAT, "/usr/sbin/sysctl": "Apple M2 Pro\n"}

    def run(command, **_):
        if command[0] not in said:
            raise FileNotFoundError(errno.ENOENT, "no such program", command[0])
        text = said[command[0]]
        return SimpleNamespace(stdout=text, returncode=0 if text else 1)

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(hardware, "_lines", lambda path: [])
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(os, "sysconf", lambda name: 1 << 14 if "SIZE" in name else 1 << 20)
    return said


def test_memory_and_processor(macos):
    """What is free, was not used lately, or was read ahead, can be had without swapping."""
    found = hardware.read_hardware()
    assert (found.cpu, found.ram_total, found.ram_available) == ("Apple M2 Pro", 16 * GIB, 2 * GIB)
    assert conversations.resting(None, None, 0).max_ram == GIB // 2


@pytest.mark.parametrize("text", [None, "", "vm_stat: failed", "Pages free: 3."])
def test_a_system_that_does_not_tell(macos, text):
    """A program that is not there, that fails, or that says something else."""
    for path in list(macos):
        if text is None:
            del macos[path]
        else:
            macos[path] = text
    found = hardware.read_hardware()
    assert found.ram_available is None
    assert found.cpu == (text or hardware.platform.processor() or hardware.platform.machine())


def test_the_peak_is_in_bytes_there(macos):
    held = hardware.peak_rss()
    sys.platform = "linux"
    assert hardware.peak_rss() in range(1024 * held, 1024 * held + (1 << 28))


def test_a_gpu_has_a_share_of_the_memory(macos, monkeypatch):
    monkeypatch.setattr(hardware, "NVML", "no-such-library")
    monkeypatch.setattr(devices.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(devices.platform, "machine", lambda: "arm64")
    found = devices.this_machine()
    assert (found.name, found.kind, found.memory) == ("Apple M2 Pro", "metal", 16 * GIB)
    assert found.usable == round(16 * GIB * 2 / 3)


def test_a_limit_of_memory_that_cannot_be_compared_is_none(macos, monkeypatch, tmp_path):
    """There is no /proc that says how much is taken."""
    monkeypatch.setattr(memory, "Path", lambda path: tmp_path / path.lstrip("/"))
    monkeypatch.setattr(memory.resource, "getrlimit", lambda what: (GIB, GIB))
    assert memory.left() is None
    assert memory.give_back_large_blocks() is False


@pytest.mark.parametrize("has_it", [True, False])
def test_a_file_is_on_the_disk_itself_before_it_gets_its_name(monkeypatch, tmp_path, has_it):
    """fsync() there ends when the drive has it, in memory of its own; not every file system has more."""
    path, data = tmp_path / "a", np.arange(99, dtype=np.uint32)
    synced = []

    def control(fd, command):
        assert command == 51 and not path.exists()
        synced.append("full")
        if not has_it:
            raise OSError(errno.ENOTSUP, "not supported")

    def fsync(fd):
        synced.append("folder" if path.exists() else "plain")

    flock = SimpleNamespace(
        F_FULLFSYNC=51,
        fcntl=control,
        flock=fcntl.flock,
        LOCK_EX=fcntl.LOCK_EX,
        LOCK_NB=fcntl.LOCK_NB,
    )
    monkeypatch.setattr(new_file, "fcntl", flock)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    seal.write(path, "document", {}, [seal.Block("x", data.dtype, data.shape, [data])])
    assert synced == ["full", *([] if has_it else ["plain"]), "folder"]
    with sealed.Sealed.open(path, "document") as file:
        assert (file.array("x") == data).all()
