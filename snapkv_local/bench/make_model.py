"""Writes a GGUF file with a real model's shape and random weights.

Speed and memory do not depend on what the weights are, so the file stands in for a model that cannot
be downloaded. It says nothing about quality.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFWriter, LlamaFileType
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from snapkv_local.bench import metadata, vocabulary
from snapkv_local.bench.blueprint import Blueprint
from snapkv_local.bench.tensors import TensorSpec, rope_factors, tensors
from snapkv_local.errors import ModelFileError

TYPES = {
    "q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
}

# in units of 32 weights. A prime, so that no two rows of a matrix start at the same place of the tile
_TILE = 65_521
_UNIT = 32  # weights

Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class MadeModel:
    """What was written.

    Attributes:
        path: of the file.
        name: of the model.
        type: of the matrices.
        n_params: weights.
        n_vocab: tokens of the vocabulary.
        n_bytes: of the file.
        seconds: that writing took.
    """

    path: str
    name: str
    type: str
    n_params: int
    n_vocab: int
    n_bytes: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return asdict(self)


def make_model(
    blueprint: Blueprint,
    kind: str,
    path: Path,
    *,
    name: str,
    vocab: Path | None = None,
    force: bool = False,
    seed: int = 1,
    progress: Progress | None = None,
) -> MadeModel:
    """Write the file; equal arguments give equal bytes.

    It is written beside its place and moved there when it is whole.

    Args:
        blueprint: the shape.
        kind: type of the matrices, a key of TYPES.
        path: the file to write.
        name: to write into it.
        vocab: GGUF file to take the tokenizer from; None makes one up.
        force: overwrite path if it exists.
        seed: of the weights.
        progress: called with bytes of weights (done, total).

    Raises:
        ModelFileError: path exists, or vocab has no vocabulary.
        OSError: it cannot be written.
    """
    started = time.monotonic()
    if path.exists() and not force:
        raise ModelFileError(str(path), "exists already", "pass --force to overwrite it")
    partial = path.with_name(path.name + ".partial")
    writer = GGUFWriter(partial, blueprint.arch)
    try:
        specs, n_vocab = _describe(writer, blueprint, kind, name, vocab)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        _write_weights(writer, blueprint, kind, specs, np.random.default_rng(seed), progress)
        writer.close()
        partial.replace(path)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)
    return MadeModel(
        path=str(path),
        name=name,
        type=kind,
        n_params=sum(math.prod(spec.shape) for spec in specs),
        n_vocab=n_vocab,
        n_bytes=path.stat().st_size,
        seconds=time.monotonic() - started,
    )


def _describe(
    writer: GGUFWriter, b: Blueprint, kind: str, name: str, vocab: Path | None
) -> tuple[list[TensorSpec], int]:
    """All that stands before the weights; the tensors and the size of the vocabulary."""
    writer.add_name(name)
    writer.add_file_type(TYPES[kind][1])
    metadata.add_shape(writer, b)
    if vocab is None:
        n_vocab = b.n_vocab
        vocabulary.add_made_up(writer, n_vocab)
    else:
        n_vocab = vocabulary.copy(writer, vocab)
    writer.add_vocab_size(n_vocab)
    specs = tensors(b, n_vocab)
    for spec in specs:
        raw = TYPES[kind][0] if spec.kind == "matrix" else GGMLQuantizationType.F32
        n_bytes = _n_bytes(spec, raw)
        writer.add_tensor_info(spec.name, spec.shape, np.dtype(np.float32), n_bytes, raw)
    return specs, n_vocab


def _n_bytes(spec: TensorSpec, raw: GGMLQuantizationType) -> int:
    block, size = GGML_QUANT_SIZES[raw]
    return int(math.prod(spec.shape) // block * size)


def _write_weights(
    writer: GGUFWriter,
    b: Blueprint,
    kind: str,
    specs: list[TensorSpec],
    rng: np.random.Generator,
    progress: Progress | None,
) -> None:
    # GGUFWriter.write_tensor_data() wants a tensor in memory, and some have gigabytes
    assert writer.fout is not None
    file = writer.fout[0]
    writer.write_padding(file, file.tell())
    tile = _Tile(kind, rng)
    total = sum(_n_bytes(spec, TYPES[kind][0]) for spec in specs if spec.kind == "matrix")
    done = 0
    for spec in specs:
        # unit gain: what goes into a matrix is normalized, and so is what comes out of it
        std = 1 / math.sqrt(spec.shape[-1])
        if spec.kind == "matrix":
            tile.write(file, math.prod(spec.shape), std, int(rng.integers(_TILE)))
            done += _n_bytes(spec, TYPES[kind][0])
            if progress is not None:
                progress(done, total)
        else:
            file.write(_float_values(spec, b, rng, std).tobytes())
        writer.write_padding(file, file.tell())


# of float32 tensors that have one value
_VALUES = {"ones": 1.0, "zeros": 0.0, "decay": -1.0, "step": -4.0}


def _float_values(
    spec: TensorSpec, b: Blueprint, rng: np.random.Generator, std: float
) -> npt.NDArray[np.float32]:
    if spec.kind == "rope":
        return np.array(rope_factors(b), np.float32)
    if spec.kind == "random":
        return rng.standard_normal(spec.shape, np.float32) * np.float32(std)
    return np.full(spec.shape, _VALUES[spec.kind], np.float32)


class _Tile:
    """Random weights, which matrices are paved with: drawing each one takes minutes."""

    def __init__(self, kind: str, rng: np.random.Generator) -> None:
        self.kind = kind
        # means of 0: a mean would be a direction that each matrix amplifies
        if kind == "f16":
            self.normal = rng.standard_normal((_TILE, _UNIT), np.float32)
            self.data = np.zeros((_TILE, _UNIT * 2), np.uint8)
        elif kind == "q8_0":  # block_q8_0 of ggml: f16 scale, 32 int8
            values = rng.integers(-127, 128, (_TILE, _UNIT), np.int8)
            self.std = math.sqrt(sum(q * q for q in range(-127, 128)) / 255)
            self.data = np.concatenate([np.zeros((_TILE, 2), np.uint8), values.view(np.uint8)], 1)
        else:  # block_q4_0: f16 scale, 32 numbers of 4 bits, 8 more than what they stand for
            low, high = rng.integers(1, 16, (2, _TILE, _UNIT // 2), np.uint8)
            self.std = math.sqrt(sum(q * q for q in range(-7, 8)) / 15)
            self.data = np.concatenate([np.zeros((_TILE, 2), np.uint8), low | high << 4], 1)

    def write(self, file: IO[bytes], n: int, std: float, start: int) -> None:
        """Write n weights of a standard deviation, from a unit of the tile on."""
        if self.kind == "f16":
            self.data = (self.normal * np.float32(std)).astype(np.float16).view(np.uint8)
        else:
            scale = np.array([std / self.std], np.float16)
            self.data[:, :2] = scale.view(np.uint8)
        left = n // _UNIT
        while left > 0:
            piece = self.data[start : start + left]
            file.write(piece.data)
            left -= len(piece)
            start = 0
