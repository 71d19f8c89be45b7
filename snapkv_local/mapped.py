"""Files that are mapped into memory, and whether somebody has written to them since.

Reading what another process has cut off a mapped file ends this one (SIGBUS), so it is asked before
each use. A file that takes the place of one, as a rename does, is another file: the one that is
mapped stays whole.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path

# whether a file that is mapped can be removed, or another one take its place: not on Windows
REPLACEABLE = os.name == "posix"


class MappedFile:
    """A file as it is now, to be compared with what it will be.

    Args:
        path: of the file.
        fd: of the file, if it is open; stays the caller's.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: str | Path, fd: int | None = None) -> None:
        self.path = Path(path)
        self._fd = os.open(path, os.O_RDONLY) if fd is None else os.dup(fd)
        # no file object, which would warn where it is not closed
        weakref.finalize(self, os.close, self._fd)
        self._before = os.fstat(self._fd)

    def change(self) -> str | None:
        """What has been done to it; None if nothing."""
        before = self._before
        try:
            now = os.fstat(self._fd)
        except OSError as e:  # of a file system that is gone
            return f"can no longer be read ({e.strerror})"
        if now.st_size < before.st_size:
            return f"was cut in place from {before.st_size:,} to {now.st_size:,} bytes"
        if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            return "was written to in place"
        return None
