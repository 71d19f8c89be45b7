"""Memory in use on NVIDIA GPUs, from the driver's management library (NVML).

NVML makes no CUDA context and so takes no device memory itself.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import threading
from types import TracebackType
from typing import Any

from snapkv_local.errors import LibraryError
from snapkv_local.hardware import NVML

_PERIOD = 0.02  # seconds between two looks at the memory in use


class Gpus:
    """The GPUs that CUDA may use, together.

    CUDA numbers them as NVML does if CUDA_DEVICE_ORDER is PCI_BUS_ID.

    Args:
        nvml: the module pynvml, initialized.
        visible: CUDA_VISIBLE_DEVICES, numbers or UUIDs; None for all.
    """

    def __init__(self, nvml: Any, visible: str | None) -> None:
        self._nvml = nvml
        if visible is None:
            names = [str(i) for i in range(nvml.nvmlDeviceGetCount())]
        else:
            names = [name.strip() for name in visible.split(",") if name.strip()]
        self._handles = [
            nvml.nvmlDeviceGetHandleByIndex(int(name))
            if name.isdecimal()
            else nvml.nvmlDeviceGetHandleByUUID(name)
            for name in names
        ]

    @classmethod
    def open(cls) -> Gpus | None:
        """The GPUs, None if there is no NVIDIA driver or CUDA may use none.

        Raises:
            LibraryError: there is a driver, and the package nvidia-ml-py is missing.
        """
        try:
            ctypes.CDLL(NVML)
        except OSError:
            return None
        try:
            pynvml = importlib.import_module("pynvml")  # it has no types
        except ImportError as e:
            raise LibraryError(
                "nvidia-ml-py",
                "is not installed, and tells how much of the GPU's memory is in use",
                'pip install "snapkv-local[nvml]"',
            ) from e
        pynvml.nvmlInit()
        gpus = cls(pynvml, os.environ.get("CUDA_VISIBLE_DEVICES"))
        return gpus if gpus._handles else None

    def used(self) -> int:
        """Bytes in use, by whomever."""
        return sum(self.used_each())

    def used_each(self) -> list[int]:
        """The same of each GPU."""
        return [int(self._nvml.nvmlDeviceGetMemoryInfo(h).used) for h in self._handles]

    def used_by(self, pid: int) -> int | None:
        """Bytes in use by a process; None if the driver does not tell, as in many containers."""
        try:
            processes = [
                process
                for handle in self._handles
                for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)
            ]
        except self._nvml.NVMLError:
            return None
        found = [p.usedGpuMemory for p in processes if p.pid == pid and p.usedGpuMemory is not None]
        return sum(map(int, found)) if found else None


class PeakMemory:
    """While open, watches the memory in use.

    Attributes:
        before: bytes in use when it was made.
    """

    def __init__(self, gpus: Gpus | None) -> None:
        self._gpus = gpus
        self._before_each = gpus.used_each() if gpus else []
        self._peak_each = self._before_each
        self.before = sum(self._before_each)
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
        return self._gpus.used() - self.before if self._gpus else 0

    def _watch(self) -> None:
        while self._gpus and not self._done.wait(_PERIOD):
            each = self._gpus.used_each()
            self._peak = max(self._peak, sum(each))
            self._peak_each = list(map(max, self._peak_each, each))
            own = self._gpus.used_by(os.getpid())
            if own is not None:
                self._peak_process = max(own, self._peak_process or 0)

    def to_dict(self) -> dict[str, Any]:
        """Bytes at the highest: of this process if the driver tells, and of the devices' growth.

        Of several GPUs also the growth of each, at its own highest.
        """
        if self._gpus is None:
            return {"peak_device": None, "peak_device_from": None}
        growth = self._peak - self.before
        own = self._peak_process
        each = [
            peak - before for peak, before in zip(self._peak_each, self._before_each, strict=True)
        ]
        return {
            "peak_device": growth if own is None else own,
            "peak_device_from": "growth of the device's" if own is None else "the process's",
            "peak_device_growth": growth,
            "device_before": self.before,
            **({"peak_device_growth_each": each} if len(each) > 1 else {}),
        }
