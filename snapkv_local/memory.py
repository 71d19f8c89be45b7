"""Memory of this process: what it may still take, where it has a limit (`ulimit -v`), and what it gives back.

Native code that gets none does not always say so. What is known to need some asks here first.
"""

from __future__ import annotations

import ctypes
import os
import sys
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
# bytes of a block that is large: more than what a token takes for a while, such as its logits
LARGE = 4 << 20

# of glibc's malloc.h
_M_MMAP_THRESHOLD = -3


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


def give_back_large_blocks() -> bool:
    """From now on the system gets back what is freed in large blocks, such as those of a prefill.

    glibc raises its own limit, from which on blocks are large, to the size of each block that is freed, up
    to 32 MiB. Smaller ones stay in the arena of the thread that had them, which grows with each thread, and
    with each block that fits no hole. That suits a program which ends; a server grows for hours. It is a
    setting of the whole process, so only one that is ours may call this.

    Returns:
        False without glibc, or if the environment says what malloc() is to do.
    """
    says = os.environ.get("GLIBC_TUNABLES", "")
    if "MALLOC_MMAP_THRESHOLD_" in os.environ or "glibc.malloc.mmap_threshold" in says:
        return False
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_M_MMAP_THRESHOLD, LARGE) == 1
