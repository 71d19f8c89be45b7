"""Where people read and write: tables on stdout, and whether somebody types into stdin."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any, TextIO

from rich.console import Console

# characters; wide enough for any path
_PIPE_WIDTH = 2000


def result_console() -> Console:
    """Of stdout. In a pipe or file lines are as long as what they hold, unless COLUMNS is set.

    There rich would take a terminal of 80 characters for given, and cut paths.
    """
    is_screen = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if is_screen else _PIPE_WIDTH)


def is_typed(stream: TextIO) -> bool:
    """If a stream is a terminal. Windows takes NUL, from which nobody types, for one as well."""
    if not stream.isatty() or sys.platform != "win32":
        return stream.isatty()
    return _has_console_mode(stream.fileno())


def _has_console_mode(fd: int) -> bool:
    import msvcrt

    kernel32: Any = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    handle = ctypes.c_void_p(msvcrt.get_osfhandle(fd))  # type: ignore[attr-defined,unused-ignore]
    return bool(kernel32.GetConsoleMode(handle, ctypes.byref(ctypes.c_uint32())))
