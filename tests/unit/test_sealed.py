"""Sealed files: what is written comes back, and what is not whole is refused."""

import errno
import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from snapkv_local.errors import DocumentError
from snapkv_local.storage import sealed
from snapkv_local.storage.new_file import check_space
from snapkv_local.storage.seal import Block, write
from snapkv_local.storage.sealed import Sealed

HEADER = {"title": "a book — with a dash", "n": 3}


def blocks() -> list[Block]:
    """One of an odd size, one in pieces beyond a checksum's, one that is empty."""
    numbers = np.random.default_rng(0)
    k = numbers.integers(0, 255, (9, 1024, 1001), dtype=np.uint8)
    tokens = numbers.integers(0, 2**31 - 1, 1001, dtype=np.int32)
    return [
        Block("tokens", np.int32, tokens.shape, [tokens]),
        Block("k", np.uint8, k.shape, [*k]),
        Block("none", np.float32, (0, 4), []),
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "book.snapkv"
    write(path, "document", HEADER, blocks())
    return path


def refusal(path: Path, kind: str = "document") -> str:
    with pytest.raises(DocumentError) as raised:
        Sealed.open(path, kind)
    assert raised.value.subject == str(path)
    return str(raised.value)


def flipped(content: bytes, place: int, bit: int) -> bytes:
    return content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :]


def test_what_was_written_comes_back(path: Path) -> None:
    with Sealed.open(path, "document") as file:
        assert file.header == HEADER
        assert file.names() == ("tokens", "k", "none")
        assert file.n_bytes == path.stat().st_size
        for block in blocks():
            found = file.array(block.name)
            assert (found.dtype, found.shape) == (np.dtype(block.dtype), block.shape)
            assert found.tobytes() == b"".join(bytes(piece) for piece in block.pieces)
            assert found.ctypes.data % 4096 == 0 or found.size == 0
            assert not found.flags.writeable


def test_arrays_outlive_the_file_they_are_from(path: Path) -> None:
    file = Sealed.open(path, "document")
    tokens = file.array("tokens")
    file.close()
    path.unlink()

    np.testing.assert_array_equal(tokens, blocks()[0].pieces[0])  # type: ignore[index]
    with pytest.raises(ValueError, match="is closed"):
        file.array("tokens")


def test_a_flipped_bit_is_found_wherever_it_is(path: Path) -> None:
    content = path.read_bytes()
    numbers = random.Random(1)
    # in page 0 and the header, too, where few of all bits are
    places = [numbers.randrange(len(content)) for _ in range(34)]
    places += [numbers.randrange(4096) for _ in range(8)]
    places += [len(content) - 1 - numbers.randrange(200) for _ in range(8)]
    for place in places:
        path.write_bytes(flipped(content, place, numbers.randrange(8)))
        refusal(path)
    path.write_bytes(content)
    Sealed.open(path, "document").close()


def test_what_is_damaged_is_named(path: Path) -> None:
    content = path.read_bytes()
    for place, where in [(100, "first page"), (6 * 1024**2, "in k"), (-3, "header")]:
        path.write_bytes(flipped(content, place % len(content), 0))
        assert "is damaged" in refusal(path)
        assert where in refusal(path)
    # 4 bytes of tokens, and zeros up to the next block
    path.write_bytes(flipped(content, 4096 + 4 * 1001 + 9, 0))
    assert "is damaged" in refusal(path)


def test_a_truncated_file_is_refused(path: Path) -> None:
    content = path.read_bytes()
    numbers = random.Random(2)
    for n in [8, 4095, 4096, len(content) - 1, *(numbers.randrange(9, 10**6) for _ in range(16))]:
        path.write_bytes(content[:n])
        assert f"is truncated: it has {n:,}" in refusal(path)
    path.write_bytes(content + b"\0")
    assert "is damaged" in refusal(path)


def test_other_files_are_refused(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert "does not exist" in refusal(other)
    for content in (b"", b"text", b"GGUF" * 2000, bytes(8192)):
        other.write_bytes(content)
        assert "is not a file of snapkv-local" in refusal(other)
    assert "is not a file" in refusal(tmp_path)
    assert "holds a document, no session" in refusal(path, "session")
    os.mkfifo(tmp_path / "pipe")
    assert "is not a file" in refusal(tmp_path / "pipe")


def test_a_newer_format_is_not_taken_for_damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, 8, sealed.VERSION + 1)
    struct.pack_into("<I", content, 4092, zlib.crc32(content[:4092]))
    path.write_bytes(content)
    assert "newer snapkv-local" in refusal(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about.pop("crc32"),
        lambda about: about["blocks"][0].pop("shape"),
        lambda about: about["blocks"][0].update(shape=[10**12]),
        lambda about: about["blocks"][0].update(shape=[-1]),
        lambda about: about["blocks"][0].update(offset=0),
        lambda about: about["blocks"][0].update(dtype="nonsense"),
    ],
)
def test_a_header_that_somebody_made_up_is_refused(
    path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    content = path.read_bytes()
    _, begin, _ = struct.unpack_from("<QQQ", content, 16)
    about = json.loads(content[begin:])
    change(about)
    header = json.dumps(about).encode()
    front = content[:16] + struct.pack("<QQQ", begin + len(header), begin, len(header))
    front = (front + blake2b(header, digest_size=32).digest()).ljust(4092, b"\0")
    path.write_bytes(front + struct.pack("<I", zlib.crc32(front)) + content[4096:begin] + header)
    assert "is damaged in its header" in refusal(path)


def test_pieces_that_do_not_add_up_leave_the_old_file(path: Path) -> None:
    before = path.read_bytes()
    for n, word in [(3, "less"), (5, "more")]:
        with pytest.raises(ValueError, match=rf"1 bytes {word} than its shape"):
            write(path, "document", {}, [Block("a", np.uint8, (4,), [bytes(n)])])
    with pytest.raises(ValueError, match="names of their own"):
        write(path, "document", {}, [Block("a", np.uint8, (0,), [])] * 2)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_ends_the_writing_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def pieces() -> Iterator[bytes]:
        yield bytes(5000)
        assert len(list(tmp_path.iterdir())) == 1
        raise error

    with pytest.raises(error):
        write(tmp_path / "a", "document", {}, [Block("a", np.uint8, (10000,), pieces())])
    assert list(tmp_path.iterdir()) == []


WRITER = """
import sys, time
import numpy as np
from snapkv_local.storage.seal import Block, write

def pieces():
    print("writing", flush=True)
    for _ in range(64):
        yield bytes([int(sys.argv[2])]) * 2**19
        time.sleep(0.002)

while True:
    write(sys.argv[1], "document", {}, [Block("a", np.uint8, (2**25,), pieces())])
"""


def start(path: Path, fill: int) -> "subprocess.Popen[str]":
    """A process that writes a file over and over; once it has begun."""
    command = [sys.executable, "-c", WRITER, str(path), str(fill)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def test_a_killed_writer_leaves_the_old_file_or_a_whole_new_one(tmp_path: Path) -> None:
    path = tmp_path / "book.snapkv"
    numbers = random.Random(3)
    n_leftovers = 0
    for i in range(1, 21):
        process = start(path, i)
        time.sleep(numbers.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        found = sorted(p.name for p in tmp_path.iterdir() if p != path)
        n_leftovers += len(found)
        assert len(found) <= 1
        if path.exists():
            with Sealed.open(path, "document") as file:
                values = np.unique(file.array("a"))
                assert len(values) == 1
                assert values[0] <= i
    assert n_leftovers > 0

    write(path, "document", HEADER, blocks())
    assert list(tmp_path.iterdir()) == [path]
    assert Sealed.open(path, "document").header == HEADER


def test_the_file_of_a_writer_that_lives_is_no_leftover(tmp_path: Path) -> None:
    path = tmp_path / "book.snapkv"
    process = start(path, 7)
    try:
        write(path, "document", HEADER, blocks())
        assert process.poll() is None
        time.sleep(0.5)  # it writes its file all the same
        with Sealed.open(path, "document") as file:
            assert file.header in ({}, HEADER)
    finally:
        process.kill()
        process.communicate()


def test_two_processes_read_at_once_while_a_third_replaces(path: Path) -> None:
    code = """
import sys
from snapkv_local.storage.sealed import Sealed
for _ in range(10):
    with Sealed.open(sys.argv[1], "document") as file:
        print(int(file.array("k").sum(dtype="int64")))
"""
    command = [sys.executable, "-c", code, str(path)]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    while any(reader.poll() is None for reader in readers):
        write(path, "document", HEADER, blocks())
    expected = str(sum(int(piece.sum(dtype=np.int64)) for piece in blocks()[1].pieces))  # type: ignore[attr-defined]
    for reader in readers:
        output, _ = reader.communicate()
        assert reader.returncode == 0
        assert output.split() == [expected] * 10


def test_too_little_space_is_said_before_anything_is_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()
    with pytest.raises(DocumentError, match=r"needs 1048576\.0 GiB, and .* free; free some space"):
        check_space(path, 2**50)
    asked: list[str] = []
    huge = Block("a", np.uint8, (2**45,), (asked.append("") or b"" for _ in range(1)))
    with pytest.raises(DocumentError, match="free some space"):
        write(path, "document", {}, [huge])
    assert asked == []
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_place_that_is_none_for_a_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="is a folder; name a file"):
        check_space(tmp_path, 1)
    with pytest.raises(DocumentError, match="folder that does not exist; make"):
        check_space(tmp_path / "no" / "such", 1)
    if os.getuid() != 0:
        tmp_path.chmod(0o500)
        with pytest.raises(DocumentError, match="may not write"):
            check_space(tmp_path / "book", 1)
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("reserves", [True, False], ids=["reserved", "on the way"])
def test_a_disk_that_fills_up_is_said(
    path: Path, monkeypatch: pytest.MonkeyPatch, reserves: bool
) -> None:
    """Where space cannot be reserved, as on some file systems, the write that fails says so."""
    before = path.read_bytes()
    if not reserves:

        def refuse(*_: Any) -> None:
            raise OSError(errno.EOPNOTSUPP, "no")

        monkeypatch.setattr(os, "posix_fallocate", refuse)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, hard))
    try:
        with pytest.raises(DocumentError, match="finds no space") as raised:
            write(path, "document", HEADER, blocks())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.subject == str(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount program")
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_loses_nothing(tmpfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmpfs / "book.snapkv"
    small = [Block("a", np.uint8, (10**6,), [bytes(10**6)])]
    write(path, "document", HEADER, small)

    def try_all() -> None:
        for n in (35 * 10**5, 4 * 10**6, 10**9):
            with pytest.raises(DocumentError, match="free some space"):
                write(path, "document", {}, [Block("a", np.uint8, (n,), [bytes(min(n, 10**7))])])
            with Sealed.open(path, "document") as file:
                assert file.header == HEADER
            assert list(tmpfs.iterdir()) == [path]

    try_all()
    # another process may take the space between the check and the reservation
    monkeypatch.setattr("snapkv_local.storage.new_file.check_space", lambda path, n_bytes: None)
    try_all()
    monkeypatch.delattr(os, "posix_fallocate")
    try_all()
