"""Tiny models with a prediction head: models of make-arch-models, with one layer more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np


def with_head(source: Path, target: Path, echoes: bool = False) -> Path:
    """Write a model again, with a head behind its layers.

    The head's layer is a copy of the last one with attention; what joins it to the others is random.

    Args:
        source: GGUF whose layers have no head.
        target: the new file.
        echoes: the head passes the hidden state on as it is, so that it guesses the token that the model
            said from it once more.
    """
    reader = gguf.GGUFReader(source)
    arch = reader.fields["general.architecture"].contents()
    n_layer = int(reader.fields[f"{arch}.block_count"].contents())
    n_embd = int(reader.fields[f"{arch}.embedding_length"].contents())
    writer = gguf.GGUFWriter(target, arch)
    for name, field in reader.fields.items():
        key = name.removeprefix(f"{arch}.")
        value: Any = field.contents()
        if name.startswith("GGUF.") or key in ("general.architecture", "nextn_predict_layers"):
            continue
        # its model of GLM 4.5 has those of the sibling for images, which heads do not know
        if arch == "glm4moe" and key == "rope.dimension_sections":
            continue
        if field.types[0] != gguf.GGUFValueType.ARRAY:
            writer.add_key_value(name, value + 1 if key == "block_count" else value, field.types[0])
        elif len(value) > 0:
            of_layers = key != name and len(value) == n_layer and key != "rope.dimension_sections"
            more = [value[-1]] if of_layers else []
            writer.add_key_value(name, [*value, *more], field.types[0], field.types[1])
    writer.add_uint32(f"{arch}.nextn_predict_layers", 1)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    attends = [t.name for t in reader.tensors if t.name.endswith(".attn_q.weight")]
    last = max(int(name.split(".")[1]) for name in attends)
    for tensor in reader.tensors:
        # scales of the head's tensors are not left out where it is not loaded
        if tensor.name.startswith(f"blk.{last}.") and not tensor.name.endswith("scale"):
            name = tensor.name.replace(f"blk.{last}.", f"blk.{n_layer}.", 1)
            adds_nothing = echoes and ("attn_output" in name or "ffn_down" in name)
            data = np.zeros_like(tensor.data) if adds_nothing else tensor.data
            writer.add_tensor(name, data, raw_dtype=tensor.tensor_type)
    head = f"blk.{n_layer}.nextn"
    joined = 0.1 * np.random.default_rng(1).standard_normal((n_embd, 2 * n_embd))
    if echoes:
        joined = np.hstack([np.zeros((n_embd, n_embd)), np.eye(n_embd)])
    writer.add_tensor(f"{head}.eh_proj.weight", joined.astype(np.float32))
    for name in (
        "enorm",
        "hnorm",
        "shared_head_norm",
    ):  # the state is behind the model's own last norm
        writer.add_tensor(f"{head}.{name}.weight", np.ones(n_embd, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
