"""Memory that the process gives back."""

import os
import platform
import subprocess
import sys

import pytest
from click.testing import CliRunner

from snapkv_local import memory
from snapkv_local.cli.serve import serve

# On a thread of its own, after a block of 24 MiB was freed, which raises glibc's own limit: three blocks of
# 8 MiB, each with a small one behind it that stays. Prints MiB that the process keeps of what is freed.
HOLES = """
import ctypes, sys, threading
from pathlib import Path
from snapkv_local import memory

if sys.argv[1] == "gives back":
    assert memory.give_back_large_blocks()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20

def block(n):
    found = libc.malloc(ctypes.c_size_t(n))
    ctypes.memset(found, 1, n)
    return found

def holes():
    libc.free(ctypes.c_void_p(block(24 << 20)))
    before = resident()
    large = []
    for _ in range(3):
        large.append(block(8 << 20))
        block(1 << 10)
    for each in large:
        libc.free(ctypes.c_void_p(each))
    print(resident() - before)

thread = threading.Thread(target=holes)
thread.start()
thread.join()
"""


def kept(how: str) -> int:
    command = [sys.executable, "-c", HOLES, how]
    own = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    own.pop("GLIBC_TUNABLES", None)
    return int(subprocess.run(command, capture_output=True, text=True, env=own, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_large_blocks_are_given_back() -> None:
    assert kept("as it is") >= 16  # else there is nothing to mend
    assert kept("gives back") <= 2


def test_the_server_gives_them_back_from_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi", reason="the extra `server` is not installed")

    class Asked(Exception):
        pass

    def asked() -> bool:
        raise Asked

    monkeypatch.setattr(memory, "give_back_large_blocks", asked)
    result = CliRunner().invoke(serve, ["needle", "--port", "0"])
    assert isinstance(result.exception, Asked)


@pytest.mark.parametrize("name", ["MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_environment_says_stays(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "glibc.malloc.mmap_threshold=65536")
    assert not memory.give_back_large_blocks()
