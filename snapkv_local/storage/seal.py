"""Writes sealed files."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from snapkv_local.storage.new_file import NewFile
from snapkv_local.storage.sealed import CRC, FRONT, MAGIC, PAGE, PIECE, VERSION

if TYPE_CHECKING:
    from typing_extensions import Buffer


@dataclass(frozen=True)
class Block:
    """An array to write.

    Attributes:
        name: unique in the file.
        dtype: of the elements.
        shape: of the array.
        pieces: buffers, C-contiguous, whose bytes one after the other are the array's. Each is done
            with when the next is asked for.
    """

    name: str
    dtype: npt.DTypeLike
    shape: tuple[int, ...]
    pieces: Iterable[Buffer | npt.NDArray[Any]]

    def n_bytes(self) -> int:
        """Of the array."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def write(path: str | Path, kind: str, header: dict[str, Any], blocks: Iterable[Block]) -> int:
    """Write a file; one that was there stays whole until the new one is.

    Args:
        kind: what it holds, such as "document"; Sealed.open() asks for it.
        header: for JSON.
        blocks: written in this order. No more than a piece of one is in memory.

    Returns:
        Bytes of the file.

    Raises:
        DocumentError: the disk has no space, or the path is no place for a file. Nothing is left
            behind then, nor after any exception of the pieces.
        ValueError: pieces do not add up to their array, or a name comes twice.
    """
    blocks = list(blocks)
    if len({block.name for block in blocks}) < len(blocks):
        raise ValueError("blocks have names of their own")
    entries, end = [], PAGE
    for block in blocks:
        dtype = np.dtype(block.dtype).newbyteorder("<")
        shape = [int(n) for n in block.shape]
        entries.append({"name": block.name, "dtype": dtype.str, "shape": shape, "offset": end})
        end = _aligned(end + block.n_bytes())
    about = {"kind": kind, "header": header, "blocks": entries}
    n_pieces = -(-(end - PAGE) // PIECE)
    n_header = len(_to_json({**about, "crc32": "0" * 8 * n_pieces}))

    with NewFile(path, end + n_header) as file:
        file.write(memoryview(bytes(PAGE)))
        sums = _Sums()
        for block in blocks:
            for data in _whole(block):
                file.write(data)
                sums.add(data)
            padding = memoryview(bytes(-block.n_bytes() % PAGE))
            file.write(padding)
            sums.add(padding)
        content = _to_json({**about, "crc32": sums.text()})
        file.write(memoryview(content))
        digest = blake2b(content, digest_size=32).digest()
        front = FRONT.pack(MAGIC, VERSION, 0, end + n_header, end, n_header, digest)
        front = front.ljust(PAGE - CRC.size, b"\0")
        os.lseek(file.fd, 0, os.SEEK_SET)
        file.write(memoryview(front + CRC.pack(zlib.crc32(front))))
    return end + n_header


class _Sums:
    """CRC-32 of each PIECE of what is added."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.crc, self.n = 0, 0

    def add(self, data: memoryview) -> None:
        while len(data) > 0:
            part = data[: PIECE - self.n]
            self.crc, self.n = zlib.crc32(part, self.crc), self.n + len(part)
            data = data[len(part) :]
            if self.n == PIECE:
                self._next()

    def _next(self) -> None:
        self.done.append(self.crc)
        self.crc, self.n = 0, 0

    def text(self) -> str:
        if self.n > 0:
            self._next()
        return "".join(f"{crc:08x}" for crc in self.done)


def _whole(block: Block) -> Iterator[memoryview]:
    """A block's pieces as bytes, cut to be written and summed while they are in the CPU's cache."""
    left = block.n_bytes()
    for piece in block.pieces:
        view = memoryview(cast("Buffer", piece))  # NumPy says it only from Python 3.12 on
        if view.nbytes == 0:
            continue
        data = view.cast("B")
        left -= len(data)
        if left < 0:
            break
        for start in range(0, len(data), PIECE):
            yield data[start : start + PIECE]
    if left != 0:
        word = "more" if left < 0 else "less"
        raise ValueError(
            f"the pieces of {block.name} are {abs(left):,} bytes {word} than its shape"
        )


def _aligned(n: int) -> int:
    return -(-n // PAGE) * PAGE


def _to_json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, allow_nan=False).encode()
