"""Where results are printed for people: tables on stdout."""

from __future__ import annotations

import os
import sys

from rich.console import Console

# characters; wide enough for any path
_PIPE_WIDTH = 2000


def result_console() -> Console:
    """Of stdout. In a pipe or file lines are as long as what they hold, unless COLUMNS is set.

    There rich would take a terminal of 80 characters for given, and cut paths.
    """
    is_screen = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if is_screen else _PIPE_WIDTH)
