"""The header of a GGUF file: metadata and tensor places, without the weights.

gguf.GGUFReader makes several objects for each element of an array, and it has no way to leave them out. With
a vocabulary of 150,000 entries (texts, types and merges) it takes 14 s of CPU time and 488 MiB; this reader
steps over long arrays, and takes 0.13 s and 7 MiB. Besides, GGUFReader reports a truncated file as an
IndexError. Value types, key names and block sizes come from the gguf package.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from gguf.constants import (
    GGML_QUANT_SIZES,
    GGUF_DEFAULT_ALIGNMENT,
    GGMLQuantizationType,
    GGUFValueType,
)

from snapkv_local.errors import ModelFileError

# per-layer arrays are kept, vocabularies are not
MAX_ARRAY = 4096

_VERSIONS = (2, 3)

_SCALARS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}


@dataclass(frozen=True)
class LongArray:
    """An array of more than MAX_ARRAY elements, which was stepped over."""

    length: int


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor's data lies.

    Attributes:
        name: of the tensor.
        offset: bytes from the start of the file.
        n_bytes: bytes of data; 0 for a type that the gguf package does not know yet.
    """

    name: str
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class GGUFHeader:
    """What stands before the weights.

    Attributes:
        metadata: values by key; long arrays are LongArray.
        tensors: in the file's order.
    """

    metadata: dict[str, Any]
    tensors: list[TensorPlace]


def read_header(path: Path) -> GGUFHeader:
    """Read the header of a GGUF file.

    Raises:
        ModelFileError: not GGUF, of a version that llama.cpp does not read, or it ends within the
            header.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelFileError(
                str(path),
                "is not a GGUF file (its first bytes are not 'GGUF')",
                "give a .gguf file",
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _Reader(data).header()
            except (struct.error, _EndOfFile) as e:
                raise truncated(path, "within its header") from e
            except ValueError as e:
                raise ModelFileError(
                    str(path),
                    f"is not a GGUF file that llama.cpp can read ({e})",
                    "download it again",
                ) from e


def truncated(path: Path, where: str) -> ModelFileError:
    """The error for a file that ends too early."""
    return ModelFileError(str(path), f"is truncated: the file ends {where}", "download it again")


class _EndOfFile(Exception):
    pass


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 4

    def scalar(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def skip(self, n_bytes: int) -> int:
        start = self.at
        if n_bytes > len(self.data) - start:
            raise _EndOfFile
        self.at += n_bytes
        return start

    def string(self) -> str:
        start = self.skip(self.scalar("<Q"))
        return str(self.data[start : self.at], encoding="utf-8")

    def array(self) -> Any:
        kind = GGUFValueType(self.scalar("<I"))
        length = self.scalar("<Q")
        if kind == GGUFValueType.ARRAY:
            raise ValueError("an array of arrays")
        if length <= MAX_ARRAY:
            return [self.value(kind) for _ in range(length)]
        if kind == GGUFValueType.STRING:
            for _ in range(length):
                self.skip(self.scalar("<Q"))
        else:
            self.skip(length * struct.calcsize(_SCALARS[kind]))
        return LongArray(length)

    def value(self, kind: GGUFValueType) -> Any:
        if kind == GGUFValueType.STRING:
            return self.string()
        if kind == GGUFValueType.ARRAY:
            return self.array()
        return self.scalar(_SCALARS[kind])

    def tensor(self) -> TensorPlace:
        name = self.string()
        shape = [self.scalar("<Q") for _ in range(self.scalar("<I"))]
        kind = self.scalar("<I")
        offset = self.scalar("<Q")
        try:
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except ValueError:
            return TensorPlace(name, offset, 0)
        return TensorPlace(name, offset, prod(shape) // block * size)

    def header(self) -> GGUFHeader:
        version = self.scalar("<I")
        if version not in _VERSIONS:
            raise ValueError(f"GGUF version {version}, or of the other byte order")
        n_tensors = self.scalar("<Q")
        n_values = self.scalar("<Q")
        metadata = {}
        for _ in range(n_values):
            key = self.string()
            metadata[key] = self.value(GGUFValueType(self.scalar("<I")))
        places = [self.tensor() for _ in range(n_tensors)]
        alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"alignment {alignment!r}")
        start = -(-self.at // alignment) * alignment
        tensors = [TensorPlace(t.name, start + t.offset, t.n_bytes) for t in places]
        return GGUFHeader(metadata, tensors)
