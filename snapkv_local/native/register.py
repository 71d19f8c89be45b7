"""The register of ggml's backends: on which the results were proven, and what is known of the others.

The table itself is in csrc/upstream/devices.cpp, which refuses devices by it.
"""

from __future__ import annotations

import ctypes
from dataclasses import asdict, dataclass, fields
from typing import Any

from snapkv_local.native import api
from snapkv_local.native.structs import llama_snapkv_backend_info

_MODELS = {
    "proven_recurrent": "models with recurrent layers",
    "proven_latent": "latent attention (MLA)",
    "proven_wide": "heads of more than 256 elements",
    "proven_sharing": "layers that share KV",
    "proven_selective": "selective prefills",
    "proven_recall": "recall while answering",
}


@dataclass(frozen=True)
class Backend:
    """A line of the register.

    Attributes:
        name: ggml's name of the backend, such as "MTL" for Metal.
        title: what people call it.
        evidence: what was run where and when, or why results cannot be relied on; sentences.
        proven: prefills there were shown to be exact, for models with none of the following.
        checked: they were on one device. On others a small model is computed when a model is loaded,
            and has to be exact.
        proven_recurrent: also of models with recurrent layers.
        proven_latent: also of models with latent attention.
        proven_wide: also with heads of more than 256 elements.
        proven_sharing: also of models with layers that read the KV of another.
        proven_selective: selective prefills did there what is tested of them.
        proven_recall: and recalls while answering.
        fused: it has our fused ops; ops of ggml do the same and take longer.
        copies_mask: each chunk's part of the mask is copied, as its flash attention ignores the
            mask's row stride.
    """

    name: str
    title: str
    evidence: str
    proven: bool
    checked: bool
    proven_recurrent: bool
    proven_latent: bool
    proven_wide: bool
    proven_sharing: bool
    proven_selective: bool
    proven_recall: bool
    fused: bool
    copies_mask: bool

    @property
    def state(self) -> str:
        """What becomes of models there, in words."""
        if not self.proven and not self.checked:
            return "refused"
        state = "proven" if self.proven else "checked when they are loaded"
        but = [models for name, models in _MODELS.items() if not getattr(self, name)]
        if but and self.checked:
            return f"{state}; refused: {', '.join(but)}"
        return f"{state}, but not for {' and '.join(but)}" if but else state

    @property
    def path(self) -> str:
        """How rows are scored and evicted there, in words."""
        ops = "fused ops" if self.fused else "ggml's ops, slower"
        return f"{ops}; masks are copied" if self.copies_mask else ops

    def to_dict(self) -> dict[str, str | bool]:
        """The fields by name, for JSON."""
        return asdict(self)


def register() -> list[Backend]:
    """All lines."""
    found: list[Backend] = []
    info = llama_snapkv_backend_info()
    while api.llama_snapkv_get_backend(len(found), ctypes.byref(info)):
        values: dict[str, Any] = {}
        for field in fields(Backend):
            value = getattr(info, field.name)
            values[field.name] = value.decode() if isinstance(value, bytes) else value
        found.append(Backend(**values))
    return found


def find(name: str) -> Backend | None:
    """The line of a backend, by ggml's name of it; None if it has none."""
    kind = name.partition("[")[0]  # RPC's has the address after it
    return next((backend for backend in register() if backend.name == kind), None)
