"""A GGUF file with its quantized matrices as f32: what the weights say, without rounding of activations.

With it two devices can be compared in float32: products with quantized weights round activations,
and each backend in its own way.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf.constants import Keys
from gguf.quants import dequantize


def dequantized(source: Path, target: Path) -> None:
    """Write the file; nothing is left of it if that fails."""
    reader = GGUFReader(source)
    architecture = reader.get_field(Keys.General.ARCHITECTURE)
    if architecture is None:
        raise ValueError(f"{source} names no architecture")
    part = target.with_suffix(".part")
    writer = GGUFWriter(part, architecture.contents())
    try:
        for field in reader.fields.values():
            if field.name == Keys.General.ARCHITECTURE or field.name.startswith("GGUF."):
                continue  # the writer's own
            kind, *elements = field.types
            element = elements[-1] if kind == GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=element)
        for tensor in reader.tensors:
            writer.add_tensor(
                tensor.name, dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
