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

# Of each n layers, those that have a sliding window: all but the last, or (dense first) all but the
# first. Where the file has no pattern, llama.cpp takes these (src/models/ARCH.cpp).
_PERIODS = {
    "afmoe": 4, "cohere2": 4, "exaone-moe": 4, "exaone4": 4, "gemma2": 2, "gemma3": 6, "gemma3n": 5,
    "gpt-oss": 2, "llama4": 4, "mellum": 4, "olmo2": 4, "plamo3": 8,
}  # fmt: skip
_PERIODS_DENSE_FIRST = {"cohere2moe": 4, "laguna": 4, "smallthinker": 4}
_N_SWA = {"gemma2": 4096, "exaone4": 4096, "llama4": 8192, "smallthinker": 4096}

_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class PlannedModel:
    """A model as a plan sees it.

    Attributes:
        path: of the file, of the first one of a split model.
        shape: heads, layers, vocabulary.
        n_ff: of each layer, elements between the feed-forward matrices; of a mixture of experts
            all that a token goes through, together.
        is_swa: of each layer, whether it has a sliding window.
        bytes_input: of the token embedding.
        bytes_layers: of each layer's weights.
        bytes_output: of the output matrix, the norm before it, and all else outside of layers. With
            tied weights the embedding again: a GPU has a copy of it.
        is_tied: the output matrix is the token embedding.
    """

    path: Path
    shape: ModelShape
    n_ff: tuple[int, ...]
    is_swa: tuple[bool, ...]
    bytes_input: int
    bytes_layers: tuple[int, ...]
    bytes_output: int
    is_tied: bool

    @property
    def bytes_weights(self) -> int:
        """All weights of the file, in bytes."""
        once = 0 if self.is_tied else self.bytes_input
        return once + sum(self.bytes_layers) + self.bytes_output


def read_model(path: Path) -> PlannedModel:
    """Read a model's metadata; its weights need not be there.

    Args:
        path: a GGUF file; of a split model any of its files, all of which must be there.

    Raises:
        ModelFileError: a file is missing, or no model's GGUF.
        UnsupportedModelError: a model with recurrent layers or MLA: what these keep is not counted.
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
    _check_supported(metadata, shape.arch, first)

    embedding, output, rest = 0, 0, 0
    layers = [0] * shape.n_layer
    for header in headers:
        for tensor in header.tensors:
            layer = _LAYER.match(tensor.name)
            if layer is not None and int(layer[1]) < shape.n_layer:
                layers[int(layer[1])] += tensor.n_bytes
            elif tensor.name == "token_embd.weight":
                embedding += tensor.n_bytes
            elif tensor.name == "output.weight":
                output += tensor.n_bytes
            else:
                rest += tensor.n_bytes
    if embedding == 0 or 0 in layers:
        raise ModelFileError(str(first), "lacks the weights of some layers", "give a model's GGUF")
    return PlannedModel(
        path=first,
        shape=shape if shape.n_vocab else _with_vocab(shape, metadata),
        n_ff=_n_ff(metadata, shape, first),
        is_swa=_is_swa(metadata, shape),
        bytes_input=embedding,
        bytes_layers=tuple(layers),
        bytes_output=(output or embedding) + rest,
        is_tied=output == 0,
    )


def _check_supported(metadata: dict[str, Any], arch: str, path: Path) -> None:
    def has(*keys: str) -> bool:
        return any(key.format(arch=arch) in metadata for key in keys)

    if has(Keys.SSM.STATE_SIZE, Keys.ShortConv.L_CACHE) or arch == "minimax-01":
        raise UnsupportedModelError(
            str(path),
            f"{arch} has recurrent layers, whose states and buffers are not counted",
            "`snapkv-local doctor` says whether it can be compressed, and a run what it took",
        )
    if has(Keys.Attention.KV_LORA_RANK):
        raise UnsupportedModelError(
            str(path),
            f"{arch} has latent attention (MLA)",
            "docs/architectures.md lists what can be compressed",
        )


def _with_vocab(shape: ModelShape, metadata: dict[str, Any]) -> ModelShape:
    return replace(shape, n_vocab=metadata.get(Keys.LLM.VOCAB_SIZE.format(arch=shape.arch), 0))


def _n_ff(metadata: dict[str, Any], shape: ModelShape, path: Path) -> tuple[int, ...]:
    def get(key: str) -> Any:
        return metadata.get(key.format(arch=shape.arch), 0)

    def by_layer(value: Any) -> list[int]:
        return list(value) if isinstance(value, list) else [int(value)] * shape.n_layer

    dense = by_layer(get(Keys.LLM.FEED_FORWARD_LENGTH))
    expert = by_layer(get(Keys.LLM.EXPERT_FEED_FORWARD_LENGTH))
    n_used = get(Keys.LLM.EXPERT_USED_COUNT)
    if n_used and not any(expert):
        expert = dense  # Mixtral: one length for all
    found = tuple(max(d, e * max(1, n_used)) for d, e in zip(dense, expert, strict=True))
    if not any(found):
        raise ModelFileError(
            str(path), "does not say the feed-forward length", "give a language model's GGUF"
        )
    return found


def _is_swa(metadata: dict[str, Any], shape: ModelShape) -> tuple[bool, ...]:
    arch, n_layer = shape.arch, shape.n_layer
    if window(shape) == 0 or (arch == "exaone4" and n_layer != 64):
        return (False,) * n_layer
    pattern = metadata.get(Keys.Attention.SLIDING_WINDOW_PATTERN.format(arch=arch))
    if isinstance(pattern, list):
        return tuple(bool(value) for value in pattern[:n_layer])
    dense_first = arch in _PERIODS_DENSE_FIRST
    period = pattern or _PERIODS.get(arch) or _PERIODS_DENSE_FIRST.get(arch)
    if period is None:
        return (False,) * n_layer  # llama.cpp reads the window of these and keeps all positions
    dense = 0 if dense_first else period - 1
    return tuple(il % period != dense for il in range(n_layer))


def window(shape: ModelShape) -> int:
    """The sliding window in tokens; 0 for none."""
    return shape.n_swa or _N_SWA.get(shape.arch, 0)
