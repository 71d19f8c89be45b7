"""Sealed files: large arrays and a JSON header, checksummed, written once (by seal) and then only read.

    page 0     magic, format version, size of the file, place and digest of the header; CRC-32
    from 4096  the blocks, each at a multiple of 4096 bytes; zeros between them
    then       the header, JSON: kind, the caller's header, the blocks, CRC-32 of each 4 MiB of the
               bytes between page 0 and the header

All numbers are little-endian. No bit of the file is outside of a checksum.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import stat
import struct
import threading
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from snapkv_local.errors import DocumentError, OutOfMemoryError
from snapkv_local.hardware import n_cores
from snapkv_local.mapped import MappedFile
from snapkv_local.storage.reads import read_at, read_into

if TYPE_CHECKING:
    from typing_extensions import Self

MAGIC = b"snapkv\r\n"  # a copy as text would change it
VERSION = 1
PAGE = 4096  # bytes
PIECE = 4 * 1024**2  # bytes of a checksum

# magic, version, zero, bytes of the file, begin and bytes of the header, its BLAKE2b
FRONT = struct.Struct("<8sIIQQQ32s")
CRC = struct.Struct("<I")  # the last bytes of page 0, of all before them
_MAX_THREADS = 8
_READ = 2**26  # bytes of one call, between two of which Ctrl-C is heard


class Sealed:
    """A file that is open for reading; open() makes it. Several processes may have one open.

    Attributes:
        path: of the file.
        header: the caller's.
        n_bytes: of the file.
        file: asked before its arrays are used, which are read from it then; None if they are memory.
    """

    def __init__(
        self,
        path: Path,
        header: dict[str, Any],
        blocks: dict[str, _Span],
        data: npt.NDArray[np.uint8],
        file: MappedFile | None,
    ) -> None:
        self.path = path
        self.header = header
        self.n_bytes = len(data)
        self.file = file
        self._blocks = blocks
        self._data: npt.NDArray[np.uint8] | None = data

    @classmethod
    def open(cls, path: str | Path, kind: str, mapped: bool = True) -> Self:
        """Read and check all of a file, and map it.

        Args:
            mapped: False reads it into memory instead: it may then change.

        Raises:
            DocumentError: it is missing, no such file, of a newer format, truncated, damaged, or
                of another kind.
            OSError: it cannot be read.
        """
        path = Path(path)
        if not path.exists():
            raise DocumentError(str(path), "does not exist", "check the path")
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise DocumentError(
                    str(path), "is not a file", "give one that snapkv-local has made"
                )
            file = MappedFile(path, fd)
            about, data = _read_header(path, fd)
            if about["kind"] != kind:
                raise DocumentError(
                    str(path), f"holds a {about['kind']}, no {kind}", f"give a file of a {kind}"
                )
            spans = _spans(path, about["blocks"], data)
            whole = _map(fd) if mapped else _read_all(path, fd)
            _check_pieces(path, fd, spans, about["crc32"], data)
            change = file.change()
            if change is not None:
                raise DocumentError(
                    str(path), f"{change} while it was checked", "wait until it is whole"
                )
            return cls(path, about["header"], spans, whole, file if mapped else None)
        except (KeyError, TypeError) as e:  # somebody made it up: the digest fits
            raise _damaged(path, "in its header, which lacks or misstates something") from e
        finally:
            os.close(fd)

    def names(self) -> tuple[str, ...]:
        """Of the arrays, in the file's order."""
        return tuple(self._blocks)

    def array(self, name: str) -> npt.NDArray[Any]:
        """An array, read-only; of a mapped file, it reads from it as it is used.

        Raises:
            KeyError: there is none of this name.
            ValueError: the file was closed.
        """
        if self._data is None:
            raise ValueError(f"{self.path} is closed")
        span = self._blocks[name]
        flat = self._data[span.offset : span.offset + span.n_bytes()]
        return flat.view(span.dtype).reshape(span.shape)

    def close(self) -> None:
        """Give no more arrays. Those that are in use stay valid, and keep file or memory."""
        self._data = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def peek(
    path: Path, kind: str, names: Iterable[str]
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]], int]:
    """The header of a file, some of its arrays, and its bytes. The rest is not read, nor are the arrays
    checked: who uses the file opens it.

    Raises:
        DocumentError: it is no such file, of a newer format, truncated, or of another kind.
        OSError: it cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        about, data = _read_header(path, fd)
        if about["kind"] != kind:
            raise DocumentError(
                str(path), f"holds a {about['kind']}, no {kind}", f"give a file of a {kind}"
            )
        spans = _spans(path, about["blocks"], data)
        found = {}
        for name in spans.keys() & set(names):
            span = spans[name]
            content = read_at(fd, span.n_bytes(), span.offset)
            found[name] = np.frombuffer(content, span.dtype).reshape(span.shape)
        return about["header"], found, os.fstat(fd).st_size
    finally:
        os.close(fd)


@dataclass(frozen=True)
class _Span:
    """Where an array is."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _read_header(path: Path, fd: int) -> tuple[dict[str, Any], range]:
    """The header, and where the blocks are, in bytes."""
    front = read_at(fd, PAGE, 0)
    if not front.startswith(MAGIC):
        raise DocumentError(
            str(path), "is not a file of snapkv-local", "give one that snapkv-local has made"
        )
    if len(front) < PAGE:
        raise _truncated(path, len(front), None)
    (crc,) = CRC.unpack(front[-CRC.size :])
    if zlib.crc32(front[: -CRC.size]) != crc:
        raise _damaged(path, "in its first page")
    _, version, _, n_bytes, begin, n_header, digest = FRONT.unpack_from(front)
    if version > VERSION:
        raise DocumentError(
            str(path),
            f"has format {version} of a newer snapkv-local, and this one reads {VERSION}",
            "update snapkv-local",
        )
    found = os.fstat(fd).st_size
    if found < n_bytes:
        raise _truncated(path, found, n_bytes)
    if found > n_bytes or n_bytes != begin + n_header:
        raise _damaged(path, f"behind byte {n_bytes:,}, where it ends")
    content = read_at(fd, n_header, begin)
    if blake2b(content, digest_size=32).digest() != digest:
        raise _damaged(path, "in its header")
    about: dict[str, Any] = json.loads(content)
    return about, range(PAGE, begin)


def _spans(path: Path, entries: list[dict[str, Any]], data: range) -> dict[str, _Span]:
    spans = {}
    for entry in entries:
        dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
        span = spans[entry["name"]] = _Span(dtype, shape, entry["offset"])
        fits = data.start <= span.offset <= span.offset + span.n_bytes() <= data.stop
        if not fits or min(shape, default=0) < 0:
            raise _damaged(path, f"in its header: {entry['name']} lies outside of it")
    return spans


def _check_pieces(path: Path, fd: int, spans: dict[str, _Span], sums: str, data: range) -> None:
    """Compares all checksums. Reads, as a map would end the process where a disk fails."""
    starts = range(data.start, data.stop, PIECE)
    local = threading.local()

    def is_whole(start: int) -> bool:
        if not hasattr(local, "buffer"):
            local.buffer = memoryview(bytearray(PIECE))
        n = min(PIECE, data.stop - start)
        n_read = 0
        while n_read < n:
            more = read_into(fd, local.buffer[n_read:n], start + n_read)
            if more == 0:
                raise _truncated(path, start + n_read, data.stop)
            n_read += more
        at = 8 * ((start - data.start) // PIECE)
        return f"{zlib.crc32(local.buffer[:n]):08x}" == sums[at : at + 8]

    # zlib and the reads let other threads run
    with ThreadPoolExecutor(min(n_cores(), _MAX_THREADS)) as pool:
        try:
            for start, whole in zip(starts, pool.map(is_whole, starts), strict=True):
                if not whole:
                    stop = start + PIECE
                    names = [n for n, s in spans.items() if _overlap(s, start, stop)]
                    where = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
                    raise _damaged(path, f"at or after byte {start:,}, in {where or 'padding'}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _map(fd: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(mmap.mmap(fd, 0, access=mmap.ACCESS_READ), np.uint8)


def _read_all(path: Path, fd: int) -> npt.NDArray[np.uint8]:
    """All of a file, in memory that begins with a page, as a map does."""
    n_bytes = os.fstat(fd).st_size
    try:
        memory = mmap.mmap(-1, n_bytes)
    except OSError as e:
        raise OutOfMemoryError(
            str(path), f"does not fit into memory: {n_bytes:,} bytes", "leave out {no_mmap}"
        ) from e
    data = memoryview(memory)
    n_read = 0
    while n_read < n_bytes:
        more = read_into(fd, data[n_read : n_read + _READ], n_read)
        if more == 0:
            raise _truncated(path, n_read, n_bytes)
        n_read += more
    return np.frombuffer(data.toreadonly(), np.uint8)


def _overlap(span: _Span, start: int, stop: int) -> bool:
    return span.offset < stop and start < span.offset + max(1, span.n_bytes())


def _truncated(path: Path, found: int, wanted: int | None) -> DocumentError:
    of = "" if wanted is None else f" of {wanted:,}"
    return DocumentError(str(path), f"is truncated: it has {found:,}{of} bytes", "make it again")


def _damaged(path: Path, where: str) -> DocumentError:
    return DocumentError(str(path), f"is damaged {where}", "make it again, or copy it again")
