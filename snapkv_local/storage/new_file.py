"""A large file that is there whole or not at all, whatever ends its writer.

It is written beside its place, under another name, and gets its own when all of it is on the disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from snapkv_local.errors import DocumentError
from snapkv_local.report.units import size

try:
    import fcntl
except ModuleNotFoundError:  # Windows: there a file that is open cannot be removed, which is a lock
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from typing_extensions import Self

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# of posix_fallocate(), where the file system does not reserve
_NO_RESERVE = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTSUP)
# seconds; on Windows a writer closes its file just before it gets its name
_AGE_OF_LEFTOVERS = 60.0


def check_space(path: str | Path, n_bytes: int) -> None:
    """Refuse early what write() would refuse late. What killed writers have left is removed first.

    Args:
        path: of the file to write; one that is there stays until the new one is whole.
        n_bytes: of the new file.

    Raises:
        DocumentError: too little free space; the path is a folder, or its folder is missing or
            closed to us; or, on Windows, a file of the name is open.
    """
    path = _target(path)
    _remove_leftovers(path)
    if fcntl is None and path.exists():
        with _in_use(path):
            path.rename(path)  # Windows refuses it for a file that is open
    n_free = shutil.disk_usage(path.parent).free
    if n_free < n_bytes:
        raise _no_space(path, f"needs {size(n_bytes)}, and {path.parent} has {size(n_free)} free")


def write_text(path: Path, text: str) -> None:
    """Write a small text; a file that was there stays whole until the new one is.

    Args:
        path: of the file; its folder is made if there is none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


class NewFile:
    """Opens a file to be written from its start; used with `with`, whose end gives it its name.

    Any exception within removes it, Ctrl-C too. What kill -9 leaves has the target's name with a
    dot before and ".partial-" and eight digits behind it, and the next writer removes it.

    Args:
        path: of the file; what is there is replaced.
        n_bytes: reserved now, where the file system can, so that the disk does not fill up on the
            way.

    Attributes:
        fd: to write to, from byte 0.

    Raises:
        DocumentError: as check_space(), and where a write finds no space.
    """

    def __init__(self, path: str | Path, n_bytes: int) -> None:
        check_space(path, n_bytes)
        self.path = _target(path)
        self.n_bytes = n_bytes
        self.fd, self.partial = -1, self.path

    def __enter__(self) -> Self:
        try:
            self.fd, self.partial = _create(self.path)
            with self._full_disk():
                self._reserve()
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                with self._full_disk():
                    _sync(self.fd)
                if fcntl is None:  # Windows renames no open file
                    self._close()
                with _in_use(self.path):
                    self.partial.replace(self.path)
                self.partial = self.path
                _sync_folder(self.path.parent)
        finally:
            self._discard()

    def write(self, data: memoryview) -> None:
        """All of data, [n_bytes], behind what is written already."""
        with self._full_disk():
            while len(data) > 0:
                data = data[os.write(self.fd, data) :]

    def _reserve(self) -> None:
        if not hasattr(os, "posix_fallocate") or self.n_bytes == 0:
            return
        try:
            os.posix_fallocate(self.fd, 0, self.n_bytes)
        except OSError as e:
            if e.errno not in _NO_RESERVE:
                raise

    @contextlib.contextmanager
    def _full_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            if e.errno not in _NO_SPACE:
                raise
            what = f"of {size(self.n_bytes)} finds no space ({e.strerror})"
            raise _no_space(self.path, what) from e

    def _discard(self) -> None:
        """Close the file, and remove it if it has not got its name."""
        self._close()  # first: Windows removes no open file
        if self.partial != self.path:
            self.partial.unlink(missing_ok=True)
            self.partial = self.path

    def _close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _target(path: str | Path) -> Path:
    """The file itself, where path is a link to it."""
    path = Path(path).resolve()
    if path.is_dir():
        raise DocumentError(str(path), "is a folder", "name a file in it")
    if not path.parent.is_dir():
        raise DocumentError(str(path), "is in a folder that does not exist", "make the folder")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise DocumentError(
            str(path), "is in a folder that you may not write to", "choose another folder"
        )
    return path


def _create(path: Path) -> tuple[int, Path]:
    """A new file under another name, locked: the lock ends with its writer, however that ends."""
    while True:
        partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
        fd = os.open(
            partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666
        )
        try:
            _lock(fd)
            # another writer may have taken it for a leftover before it was locked
            if partial.exists():
                return fd, partial
        except BlockingIOError:
            pass
        except OSError:  # the file system has no locks, and no writer removes leftovers there
            return fd, partial
        os.close(fd)


def _remove_leftovers(path: Path) -> None:
    name = re.compile(re.escape(f".{path.name}.partial-") + "[0-9a-f]{8}")
    for found in path.parent.iterdir():
        if not name.fullmatch(found.name):
            continue
        with contextlib.suppress(OSError):  # its writer lives, or it is not ours
            if fcntl is None:
                if time.time() - found.stat().st_mtime > _AGE_OF_LEFTOVERS:
                    found.unlink()
                continue
            fd = os.open(found, os.O_RDWR)
            try:
                _lock(fd)
                found.unlink()
            finally:
                os.close(fd)


def _lock(fd: int) -> None:
    if fcntl is not None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def _in_use(path: Path) -> Iterator[None]:
    """While open, what Windows refuses about a file is that somebody has it open."""
    try:
        yield
    except PermissionError as e:
        if fcntl is not None:
            raise
        raise DocumentError(
            str(path),
            "is open here or in another process, and Windows replaces no file that is open",
            "close what reads it, or choose another name",
        ) from e


def _sync(fd: int) -> None:
    """All of a file to the disk itself: on macOS fsync() leaves it in the drive's own memory."""
    whole = getattr(fcntl, "F_FULLFSYNC", None)
    if whole is not None:
        with contextlib.suppress(OSError):  # of a file system that has no such thing
            fcntl.fcntl(fd, whole)
            return
    os.fsync(fd)


def _sync_folder(folder: Path) -> None:
    """So that the new name, too, outlives a power failure."""
    if os.name != "posix":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _no_space(path: Path, problem: str) -> DocumentError:
    return DocumentError(str(path), problem, "free some space, or choose another folder")
