"""How much memory there is: a size, a device by its name, or this machine."""

from __future__ import annotations

import ctypes
import difflib
import importlib.resources
import json
import platform
import re
from dataclasses import asdict, dataclass
from typing import Any

from snapkv_local import hardware
from snapkv_local.errors import ConfigError

# Metal lets a GPU use this much of the memory that it shares with the processor:
# recommendedMaxWorkingSetSize in logs is 10922.67 MiB of 16 GiB (abetlen/llama-cpp-python#687),
# 21845.34 of 32 (ollama/ollama#434), 49152 of 64 (ggml-org/llama.cpp#1870), 73728 of 96 (#3213)
_METAL = ((32 << 30, 2 / 3), (1 << 62, 3 / 4))


@dataclass(frozen=True)
class Device:
    """A device's memory.

    Attributes:
        name: the product's, or what this machine says.
        kind: "cuda", "metal", "hip" or "cpu".
        memory: bytes built in.
        usable: bytes that a program can have.
        source: where the size is from.
    """

    name: str
    kind: str
    memory: int
    usable: int
    source: str

    @property
    def is_gpu(self) -> bool:
        """Whether layers go to a GPU."""
        return self.kind != "cpu"

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return asdict(self)


def known() -> list[Device]:
    """The devices of devices.json."""
    file = importlib.resources.files("snapkv_local.plan").joinpath("devices.json")
    data = json.loads(file.read_text(encoding="utf-8"))
    found = []
    for row in data["devices"]:
        memory = round(row["memory_gib"] * 2**30)
        usable = _metal(memory) if row["kind"] == "metal" else round(memory * data["usable_share"])
        found.append(Device(row["name"], row["kind"], memory, usable, row["source"]))
    return found


def find(name: str) -> Device:
    """A device by its name, without regard to case and maker.

    Raises:
        ConfigError: there is none of this name, or several; the message has the nearest names.
    """
    devices = {_key(device.name): device for device in known()}
    key = _key(name)
    if key in devices:
        return devices[key]
    fitting = [device.name for k, device in devices.items() if key and key in k]
    if len(fitting) == 1:
        return next(device for device in devices.values() if device.name == fitting[0])
    near = fitting or [devices[k].name for k in difflib.get_close_matches(key, devices, 5, 0.5)]
    problem = f"could be {len(fitting)} devices" if fitting else "is not in the table of devices"
    cure = (
        f"write one of: {', '.join(near)}"
        if near
        else "give its memory with --memory, such as 8GiB"
    )
    raise ConfigError(f"device {name!r}", problem, cure)


def this_machine() -> Device:
    """The first NVIDIA GPU, or Apple's, or else the processor with the memory that is free now."""
    gpu = _nvidia()
    if gpu is not None:
        return gpu
    machine = hardware.read_hardware()
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return Device(
            machine.cpu, "metal", machine.ram_total, _metal(machine.ram_total), "this machine"
        )
    free = machine.ram_available or machine.ram_total
    return Device(machine.cpu, "cpu", machine.ram_total, free, "this machine")


def _nvidia() -> Device | None:
    """From the driver's library; None without a driver or a GPU."""
    try:
        nvml = ctypes.CDLL(hardware.NVML)
    except OSError:
        return None

    class Memory(ctypes.Structure):
        _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]

    handle, memory = ctypes.c_void_p(), Memory()
    name = ctypes.create_string_buffer(96)
    calls = (
        ("nvmlInit_v2",),
        ("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(0), ctypes.byref(handle)),
        ("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory)),
        ("nvmlDeviceGetName", handle, name, ctypes.c_uint(len(name))),
    )
    for function, *arguments in calls:
        if getattr(nvml, function)(*arguments) != 0:
            return None
    return Device(name.value.decode(), "cuda", memory.total, memory.free, "this machine")


def _metal(memory: int) -> int:
    return next(round(memory * share) for limit, share in _METAL if memory <= limit)


def _key(name: str) -> str:
    words = re.sub(r"\b(nvidia|geforce|rtx|amd|radeon|apple|tesla|gpu)\b", " ", name.lower())
    words = re.sub(r"(?<=\d)\s+(?=gb\b)", "", words)
    return re.sub(r"[^a-z0-9]+", "", words)
