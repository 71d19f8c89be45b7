"""What memory depends on, from the metadata of a GGUF file."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gguf.constants import Keys

from snapkv_local.errors import ModelFileError, UnsupportedModelError
from snapkv_local.models import files
from snapkv_local.models.gguf_header import read_header
from snapkv_local.models.gguf_shape import ModelShape, shape_of
from snapkv_local.plan import refused
from snapkv_local.plan.kinds import Layer, hidden_size, layers_of

_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class PlannedModel:
    """A model as a plan sees it.

    Attributes:
        path: of the file, of the first one of a split model.
        shape: heads, layers, vocabulary.
        layers: what each layer keeps and computes.
        n_hidden: elements of a token between layers; Gemma 3n has several hidden states.
        n_added: elements of a token's embeddings that layers add, all layers; 0 for most models.
        bytes_input: of the token embedding, and of those that layers add.
        bytes_layers: of each layer's weights.
        bytes_output: of the output matrix, the norm before it, and all else outside of layers. With
            tied weights the embedding again: a GPU has a copy of it.
        bytes_tied: of the output matrix, where it is the token embedding; else 0.
        bytes_heads: of prediction heads (MTP), which are loaded where they are asked for.
    """

    path: Path
    shape: ModelShape
    layers: tuple[Layer, ...]
    n_hidden: int
    n_added: int
    bytes_input: int
    bytes_layers: tuple[int, ...]
    bytes_output: int
    bytes_tied: int
    bytes_heads: int = 0

    @property
    def bytes_weights(self) -> int:
        """All weights of the file but those of prediction heads, in bytes."""
        return self.bytes_input + sum(self.bytes_layers) + self.bytes_output - self.bytes_tied


def read_model(path: Path) -> PlannedModel:
    """Read a model's metadata; its weights need not be there.

    Args:
        path: a GGUF file; of a split model any of its files, all of which must be there.

    Raises:
        ModelFileError: a file is missing, or no model's GGUF.
        UnsupportedModelError: a model that cannot be compressed.
    """
    headers = []
    for file in files.files(path):
        if not file.is_file():
            raise ModelFileError(
                str(file), "does not exist", "a split model needs all of its files"
            )
        headers.append(read_header(file))
    first = files.files(path)[0]
    shape = shape_of(headers[0], first)
    metadata = headers[0].metadata
    reason = refused.reason(metadata, shape.arch)
    if reason is not None:
        raise UnsupportedModelError(
            str(first),
            f"{shape.arch} {reason}",
            "docs/architectures.md lists what can be compressed",
        )

    embedding, output, rest = 0, 0, 0
    layers = [0] * shape.n_layer
    inputs = heads = 0
    for header in headers:
        for tensor in header.tensors:
            layer = _LAYER.match(tensor.name)
            if layer is not None:
                if int(layer[1]) < shape.n_layer:
                    layers[int(layer[1])] += tensor.n_bytes
                else:
                    heads += tensor.n_bytes
            elif tensor.name == "token_embd.weight":
                embedding += tensor.n_bytes
            elif tensor.name == "per_layer_token_embd.weight":
                inputs += tensor.n_bytes
            elif tensor.name == "output.weight":
                output += tensor.n_bytes
            else:
                rest += tensor.n_bytes
    kinds = layers_of(metadata, shape)
    if not any(layer.n_ff for layer in kinds):
        raise ModelFileError(
            str(first), "does not say the feed-forward length", "give a language model's GGUF"
        )
    if embedding == 0 or 0 in layers:
        raise ModelFileError(str(first), "lacks the weights of some layers", "give a model's GGUF")
    return PlannedModel(
        path=first,
        shape=shape if shape.n_vocab else _with_vocab(shape, metadata),
        layers=kinds,
        n_hidden=hidden_size(shape),
        n_added=shape.n_layer
        * metadata.get(Keys.LLM.EMBD_LENGTH_PER_LAYER_INP.format(arch=shape.arch), 0),
        bytes_input=embedding + inputs,
        bytes_layers=tuple(layers),
        bytes_output=(output or embedding) + rest,
        bytes_tied=0 if output else embedding,
        bytes_heads=heads,
    )


def _with_vocab(shape: ModelShape, metadata: dict[str, Any]) -> ModelShape:
    return replace(shape, n_vocab=metadata.get(Keys.LLM.VOCAB_SIZE.format(arch=shape.arch), 0))
