"""Reads from a place in a file, whatever other threads read meanwhile.

Windows has no pread(): there a read moves the file's position, and so has to be alone.
"""

from __future__ import annotations

import os
import threading

_alone = threading.Lock()


def read_at(fd: int, n_bytes: int, offset: int) -> bytes:
    """As os.pread(): fewer bytes at the file's end."""
    if hasattr(os, "pread"):
        return os.pread(fd, n_bytes, offset)
    with _alone:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, n_bytes)


def read_into(fd: int, buffer: memoryview, offset: int) -> int:
    """As os.preadv() into one buffer.

    Args:
        buffer: bytes, to be filled as far as one read goes.

    Returns:
        How many were read; 0 at the file's end.
    """
    if hasattr(os, "preadv"):
        return os.preadv(fd, [buffer], offset)
    data = read_at(fd, len(buffer), offset)
    buffer[: len(data)] = data
    return len(data)
