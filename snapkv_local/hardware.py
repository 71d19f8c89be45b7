"""What this machine has. Devices of ggml are in native/devices.py, which loads the native library."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Hardware:
    """Memory and processor.

    Attributes:
        cpu: name of the processor.
        n_cores: cores that this process may use.
        ram_total: bytes.
        ram_available: bytes that can be had without swapping; None where the system does not tell.
    """

    cpu: str
    n_cores: int
    ram_total: int
    ram_available: int | None

    def to_dict(self) -> dict[str, str | int | None]:
        """The fields by name, for JSON."""
        return asdict(self)


def read_hardware() -> Hardware:
    """Ask the operating system (Linux and macOS)."""
    return Hardware(
        cpu=_cpu_name(),
        n_cores=n_cores(),
        ram_total=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        ram_available=_ram_available(),
    )


def n_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_rss() -> int:
    """Largest resident memory of this process so far, in bytes."""
    # Linux hands ru_maxrss on to the children of a process, even through exec
    for line in _lines(Path("/proc/self/status")):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _ram_available() -> int | None:
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cpu_name() -> str:
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return platform.processor() or platform.machine()


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
