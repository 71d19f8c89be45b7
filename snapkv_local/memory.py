"""Address space that this process may still take, where it has a limit (`ulimit -v`).

Native code that gets none does not always say so. What is known to need some asks here first.
"""

from __future__ import annotations

from pathlib import Path

from snapkv_local.errors import OutOfMemoryError
from snapkv_local.report.units import size

try:
    import resource
except ModuleNotFoundError:  # Windows, where a process has no such limit of its own
    resource = None  # type: ignore[assignment]

# bytes of address space; scripts/memory_walk.py finds them too small, where they are
PROGRAM = 176 << 20  # Python's packages, before the engine is loaded
ENGINE = 256 << 20


def left() -> int | None:
    """Bytes of address space; None if there is no limit, or none can be told."""
    if resource is None:
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    statm = Path("/proc/self/statm")
    if limit == resource.RLIM_INFINITY or not statm.exists():
        return None
    return limit - int(statm.read_text().split()[0]) * resource.getpagesize()


def require(n_bytes: int, what: str) -> None:
    """Refuse what cannot be done in the address space that is left.

    Args:
        n_bytes: that it takes.
        what: takes it, for the error.

    Raises:
        OutOfMemoryError: there is less.
    """
    there = left()
    if there is not None and there < n_bytes:
        raise OutOfMemoryError(
            what,
            f"takes about {size(n_bytes)} of address space, and this process may still take "
            f"{size(max(0, there))}",
            "raise its limit (`ulimit -v`)",
        )


def require_engine() -> None:
    """Before NumPy and llama.cpp are loaded.

    Raises:
        OutOfMemoryError: they would find too little.
    """
    require(ENGINE, "loading the engine")
