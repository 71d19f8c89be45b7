"""The NVIDIA driver through its own libraries: which device, memory in use, memory taken away.

Standard library only. On a machine without one, Device.open() is None.

    device.py hold BYTES     # takes all free memory but BYTES, until stdin ends
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any

_PERIOD = 0.02  # seconds between two looks at the memory in use
_UNKNOWN = 2**64 - 1  # NVML_VALUE_NOT_AVAILABLE


class _Memory(ctypes.Structure):
    """nvmlMemory_t, bytes."""

    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


class _Process(ctypes.Structure):
    """nvmlProcessInfo_t of nvmlDeviceGetComputeRunningProcesses_v3."""

    _fields_ = [
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    ]


class Device:
    """The first GPU, through NVML, which makes no CUDA context and so takes no memory itself."""

    def __init__(self, nvml: ctypes.CDLL) -> None:
        self._nvml = nvml
        self._handle = ctypes.c_void_p()
        rc = nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(self._handle))
        if rc != 0:
            raise OSError(f"NVML: error {rc}")

    @classmethod
    def open(cls) -> Device | None:
        """The device, None if there is none."""
        try:
            return cls(ctypes.CDLL("libnvidia-ml.so.1"))
        except OSError:
            return None

    def used(self) -> int:
        """Bytes in use, by whomever."""
        memory = _Memory()
        rc = self._nvml.nvmlDeviceGetMemoryInfo(self._handle, ctypes.byref(memory))
        if rc != 0:
            raise OSError(f"nvmlDeviceGetMemoryInfo: error {rc}")
        return int(memory.used)

    def used_by(self, pid: int) -> int | None:
        """Bytes in use by a process; None if the driver does not tell, as in many containers."""
        found = (_Process * 64)()
        count = ctypes.c_uint(len(found))
        rc = self._nvml.nvmlDeviceGetComputeRunningProcesses_v3(
            self._handle, ctypes.byref(count), found
        )
        if rc != 0:
            return None
        for process in found[: count.value]:
            if process.pid == pid and process.used != _UNKNOWN:
                return int(process.used)
        return None


def describe() -> dict[str, str]:
    """Name, memory, driver and compute capability, as nvidia-smi says; empty without a GPU."""
    fields = ("name", "memory.total", "driver_version", "compute_cap")
    command = ["nvidia-smi", "-i", "0", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {}
    values = result.stdout.splitlines()[0].split(", ")
    return dict(zip(fields, values, strict=True))


class PeakMemory:
    """While open, watches the memory in use.

    Attributes:
        before: bytes in use when it was made.
    """

    def __init__(self, device: Device | None) -> None:
        self._device = device
        self.before = device.used() if device else 0
        self._peak = self.before
        self._peak_process: int | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    def look(self) -> int:
        """Bytes in use now, without those that were before."""
        return self._device.used() - self.before if self._device else 0

    def _watch(self) -> None:
        while self._device and not self._done.wait(_PERIOD):
            self._peak = max(self._peak, self._device.used())
            own = self._device.used_by(os.getpid())
            if own is not None:
                self._peak_process = max(own, self._peak_process or 0)

    def to_dict(self) -> dict[str, Any]:
        """Bytes at the highest: of this process if the driver tells, and of the device's growth."""
        if self._device is None:
            return {"peak_device": None, "peak_device_from": None}
        growth = self._peak - self.before
        own = self._peak_process
        return {
            "peak_device": growth if own is None else own,
            "peak_device_from": "growth of the device's" if own is None else "the process's",
            "peak_device_growth": growth,
            "device_before": self.before,
        }


@contextlib.contextmanager
def held(leave: int | None, environment: dict[str, str]) -> Iterator[dict[str, Any]]:
    """While open, another process holds all device memory but so many bytes; what it says."""
    if leave is None:
        yield {}
        return
    holder = subprocess.Popen(
        [sys.executable, __file__, "hold", str(leave)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert holder.stdout is not None
    try:
        line = holder.stdout.readline()
        if not line:
            raise OSError("the device's memory could not be taken away")
        yield {"holder": json.loads(line)}
    finally:
        holder.communicate()  # ends its stdin, and with that the process


def hold(leave: int) -> None:
    """Take all free memory of the first GPU but `leave` bytes, say so, and wait for stdin's end."""
    cuda = ctypes.CDLL("libcuda.so.1")

    def call(name: str, *args: Any) -> None:
        rc = getattr(cuda, name)(*args)
        if rc != 0:
            raise OSError(f"{name}: error {rc}")

    def free() -> int:
        n_free, total = ctypes.c_size_t(), ctypes.c_size_t()
        call("cuMemGetInfo_v2", ctypes.byref(n_free), ctypes.byref(total))
        return n_free.value

    device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxSetCurrent", context)
    held = free() - leave
    if held > 0:
        call("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(held))
    print(json.dumps({"held": max(held, 0), "free": free()}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "hold":
        sys.exit(f"usage: {sys.argv[0]} hold BYTES")
    hold(int(sys.argv[2]))
