"""Files as Windows has them: what is open, or mapped, keeps its name and its place. Made so on Linux."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

IN_PROC = pytest.mark.skipif(sys.platform != "linux", reason="open files are looked up in /proc")


def keep_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the test ends, Path renames, replaces and removes no file that this process has open."""

    def is_open(path: Path) -> bool:
        return str(path) in Path("/proc/self/maps").read_text() or any(
            fd.is_symlink() and fd.resolve() == path for fd in Path("/proc/self/fd").iterdir()
        )

    def kept(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*paths: Any, **kwargs: Any) -> Any:
            if any(is_open(path) for path in paths if isinstance(path, Path)):
                raise PermissionError(13, "in use by another process", str(paths[0]))
            return function(*paths, **kwargs)

        return call

    for name in ("rename", "replace", "unlink"):
        monkeypatch.setattr(Path, name, kept(getattr(Path, name)))
