"""ggml's backends: loads them, and lists the devices that they offer.

Importing this module loads the native library. Declarations are from ggml/include/ggml-backend.h.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import asdict, dataclass
from typing import Any

# first of all: llama_cpp, below, loads the library that it has chosen
from snapkv_local.native.binding import LIB_DIR, build, function  # isort: skip

from llama_cpp._logger import logger

from snapkv_local.errors import LibraryError

_DEVICE_TYPES = ("cpu", "gpu", "igpu", "accelerator", "meta")


# GGML_API size_t ggml_backend_reg_count(void);
@function("ggml_backend_reg_count", [], ctypes.c_size_t)
def ggml_backend_reg_count() -> int: ...


# GGML_API void ggml_backend_load_all_from_path(const char * dir_path);
@function("ggml_backend_load_all_from_path", [ctypes.c_char_p], None)
def ggml_backend_load_all_from_path(dir_path: bytes, /) -> None: ...


# GGML_API size_t ggml_backend_dev_count(void);
@function("ggml_backend_dev_count", [], ctypes.c_size_t)
def ggml_backend_dev_count() -> int: ...


# GGML_API ggml_backend_dev_t ggml_backend_dev_get(size_t index);
@function("ggml_backend_dev_get", [ctypes.c_size_t], ctypes.c_void_p)
def ggml_backend_dev_get(index: int, /) -> int: ...


# GGML_API const char * ggml_backend_dev_name(ggml_backend_dev_t device);
@function("ggml_backend_dev_name", [ctypes.c_void_p], ctypes.c_char_p)
def ggml_backend_dev_name(device: int, /) -> bytes: ...


# GGML_API const char * ggml_backend_dev_description(ggml_backend_dev_t device);
@function("ggml_backend_dev_description", [ctypes.c_void_p], ctypes.c_char_p)
def ggml_backend_dev_description(device: int, /) -> bytes: ...


# GGML_API void ggml_backend_dev_memory(ggml_backend_dev_t device, size_t * free, size_t * total);
@function(
    "ggml_backend_dev_memory",
    [ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t)],
    None,
)
def ggml_backend_dev_memory(device: int, free: Any, total: Any, /) -> None: ...


# GGML_API ggml_backend_reg_t ggml_backend_dev_backend_reg(ggml_backend_dev_t device);
@function("ggml_backend_dev_backend_reg", [ctypes.c_void_p], ctypes.c_void_p)
def ggml_backend_dev_backend_reg(device: int, /) -> int: ...


# GGML_API const char * ggml_backend_reg_name(ggml_backend_reg_t reg);
@function("ggml_backend_reg_name", [ctypes.c_void_p], ctypes.c_char_p)
def ggml_backend_reg_name(reg: int, /) -> bytes: ...


# GGML_API enum ggml_backend_dev_type ggml_backend_dev_type(ggml_backend_dev_t device);
@function("ggml_backend_dev_type", [ctypes.c_void_p], ctypes.c_int)
def ggml_backend_dev_type(device: int, /) -> int: ...


@dataclass(frozen=True)
class Device:
    """A device that models can be computed on.

    Attributes:
        name: ggml's, such as "CPU", "CUDA0", or "MTL0" for Metal.
        backend: ggml's name of what drives it, such as "CPU", "CUDA" or "MTL".
        description: the product's name.
        kind: "cpu", "gpu", "igpu", "accelerator" or "meta".
        memory_free: bytes.
        memory_total: bytes.
    """

    name: str
    backend: str
    description: str
    kind: str
    memory_free: int
    memory_total: int

    def to_dict(self) -> dict[str, str | int]:
        """The fields by name, for JSON."""
        return asdict(self)


def devices() -> list[Device]:
    """All devices of the loaded backends."""
    found = []
    for index in range(ggml_backend_dev_count()):
        device = ggml_backend_dev_get(index)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        found.append(
            Device(
                name=ggml_backend_dev_name(device).decode(),
                backend=ggml_backend_reg_name(ggml_backend_dev_backend_reg(device)).decode(),
                description=ggml_backend_dev_description(device).decode(),
                kind=_DEVICE_TYPES[ggml_backend_dev_type(device)],
                memory_free=free.value,
                memory_total=total.value,
            )
        )
    return found


def _load() -> None:
    if ggml_backend_reg_count() > 0:
        return  # linked into libggml
    level = logger.level
    logger.setLevel("ERROR")  # one line for each backend on stderr otherwise
    try:
        ggml_backend_load_all_from_path(os.fsencode(LIB_DIR))
    finally:
        logger.setLevel(level)
    if ggml_backend_reg_count() == 0:
        raise LibraryError(
            str(LIB_DIR),
            "has no ggml backend that this processor can run",
            "build on this machine with `make build` or `pip install .`",
        )


_load()


def build_name() -> str:
    """Of the library, in the manner of llama.cpp's own: b, and the commit of llama.cpp."""
    commit = build().get("llama_cpp_commit", "")
    return f"b-{commit[:9]}-snapkv"
