"""What this machine has. Devices of ggml are in native/devices.py, which loads the native library."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None  # type: ignore[assignment]

NVML = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"  # NVIDIA's driver has it


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
    """Ask the operating system (Linux, macOS and Windows)."""
    total, available = _ram_of_windows() if resource is None else _ram()
    return Hardware(cpu=_cpu_name(), n_cores=n_cores(), ram_total=total, ram_available=available)


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
    if resource is None:
        return _peak_of_windows()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _ram() -> tuple[int, int | None]:
    """Total, and what can be had."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            return total, int(line.split()[1]) * 1024
    return total, _available_on_macos() if sys.platform == "darwin" else None


def _available_on_macos() -> int | None:
    """Bytes of pages that are free, or that were not used lately; files that are cached are among these."""
    said = _said("/usr/bin/vm_stat")
    page = re.search(r"page size of (\d+) bytes", said)
    pages = re.findall(r"^Pages (?:free|inactive|speculative):\s+(\d+)", said, re.MULTILINE)
    return int(page[1]) * sum(map(int, pages)) if page and pages else None


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX."""

    _fields_ = [
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in ("total", "available", "a", "b", "c", "d", "e")),
    ]


class _MemoryCounters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS."""

    _fields_ = [
        ("size", ctypes.c_uint32),
        ("faults", ctypes.c_uint32),
        *((name, ctypes.c_size_t) for name in ("peak", "a", "b", "c", "d", "e", "f", "g")),
    ]


def _windows() -> Any:
    return ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]


def _ram_of_windows() -> tuple[int, int | None]:
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    _windows().GlobalMemoryStatusEx(ctypes.byref(status))
    return status.total, status.available


def _peak_of_windows() -> int:
    counters = _MemoryCounters(size=ctypes.sizeof(_MemoryCounters))
    kernel32 = _windows()
    kernel32.GetCurrentProcess.restype = ctypes.c_void_p
    kernel32.K32GetProcessMemoryInfo.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32]
    kernel32.K32GetProcessMemoryInfo(
        kernel32.GetCurrentProcess(), ctypes.addressof(counters), counters.size
    )
    return int(counters.peak)


def _cpu_name() -> str:
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    name = ""
    if sys.platform == "darwin":
        name = _said("/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string").strip()
    return name or platform.processor() or platform.machine()


def _said(*command: str) -> str:
    """What a program of the system prints; nothing where there is no such program, or it fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError:
        return ""
    return result.stdout if result.returncode == 0 else ""


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
