"""What K and V of a text depend on: the model's weights, and settings of the context."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from snapkv_local.models import files as model_files
from snapkv_local.models.gguf_header import read_header

_SAMPLE = 1024  # bytes of each tensor's middle


@dataclass(frozen=True)
class Model:
    """A model as it is loaded.

    Attributes:
        name: from the file's metadata; may be empty.
        file: its name.
        path: where it was.
        digest: of its files, without most of their weights.
        kv_type: of K and V, as "f16" or "f16/q8_0" where they differ.
        lora: digest of the adapter and its scale; "" without one.
        rope: settings of rotary positions that were given to the context.
        long: whether the context is longer than the one that the model was trained for, where the
            model then turns positions otherwise; False for other models.
    """

    name: str
    file: str
    path: str
    digest: str
    kv_type: str
    lora: str
    rope: dict[str, float]
    long: bool

    def differs(self, other: Model) -> str | None:
        """In what another one differs so that K and V are not equal; None if in nothing."""
        if self.digest != other.digest:
            return f"this is {self.name or self.file}, or other weights of the name"
        if self.lora != other.lora:
            return "the LoRA adapter is another"
        if self.kv_type != other.kv_type:
            return f"its cache is {other.kv_type} and this one {self.kv_type}"
        if self.rope != other.rope or self.long != other.long:
            return "positions are turned otherwise (rope and yarn settings, or n_ctx)"
        return None


def digest_of(path: Path) -> str:
    """Of all files of a model, without most of their weights."""
    files = model_files.files(path)
    stats = [file.stat() for file in files]
    return _digest(tuple(files), tuple((s.st_size, s.st_mtime_ns) for s in stats))


# for each of a file's states once: a server asks for each document
@functools.lru_cache(maxsize=8)
def _digest(files: tuple[Path, ...], states: tuple[tuple[int, int], ...]) -> str:
    digest = blake2b(digest_size=16)
    for file, (n_bytes, _) in zip(files, states, strict=True):
        header = read_header(file)
        places: list[Any] = sorted(header.tensors, key=lambda tensor: tensor.offset)
        with file.open("rb") as data:
            digest.update(n_bytes.to_bytes(8, "little"))
            digest.update(data.read(places[0].offset if places else n_bytes))
            for place in places:
                data.seek(place.offset + max(0, place.n_bytes - _SAMPLE) // 2)
                digest.update(data.read(min(_SAMPLE, place.n_bytes or _SAMPLE)))
    return digest.hexdigest()
