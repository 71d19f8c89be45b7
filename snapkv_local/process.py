"""Whether this process is the command line's own, and may be treated as such."""

from __future__ import annotations

# a library leaves alone how its process ends and what llama.cpp prints; a program does not
is_own = False

# descriptor that llama.cpp's log is written to, for --verbose
log: int | None = None
