"""Processes: whether this one is the command line's own, and how a module of ours gets one."""

from __future__ import annotations

import sys

# a library leaves alone how its process ends and what llama.cpp prints; a program does not
is_own = False

# descriptor that llama.cpp's log is written to, for --verbose
log: int | None = None


def of_module(module: str) -> list[str]:
    """The command that runs a module in a process of its own.

    It finds the modules that this process has, whatever lies in the current folder: `python -m`
    would take a file there, such as queue.py, for the library's.
    """
    path = [entry for entry in sys.path if entry]
    code = f"import sys; sys.path[:] = {path!r}; import runpy; "
    code += f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    return [sys.executable, "-c", code]
