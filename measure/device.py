"""The first NVIDIA GPU: which one it is, and memory taken away from it.

Standard library only.

    device.py hold BYTES     # takes all free memory but BYTES, until stdin ends
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any


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
