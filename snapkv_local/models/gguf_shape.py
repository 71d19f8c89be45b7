"""A model's shape, read from GGUF metadata."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gguf.constants import Keys

from snapkv_local.errors import ConfigError, ModelFileError
from snapkv_local.models.gguf_header import GGUFHeader, LongArray, read_header


@dataclass(frozen=True)
class ModelShape:
    """The numbers that a KV cache depends on.

    Attributes:
        arch: llama.cpp's name of the architecture.
        name: of the model, "" if the file has none.
        n_layer: layers, without those that only predict further tokens (MTP).
        n_ctx_train: context length of the training, in tokens.
        n_embd: elements of the hidden state.
        n_head: query heads of each layer.
        n_head_kv: KV heads of each layer.
        head_k: elements of a key head.
        head_v: elements of a value head.
        n_swa: sliding window in tokens, 0 if the metadata name none. Which layers it applies to is
            often fixed in llama.cpp's code and not in the file.
        n_vocab: tokens in the vocabulary.
        has_chat_template: whether the file has one.
        has_learned_positions: it has embeddings of the n_ctx_train positions, and knows no others.
    """

    arch: str
    name: str
    n_layer: int
    n_ctx_train: int
    n_embd: int
    n_head: tuple[int, ...]
    n_head_kv: tuple[int, ...]
    head_k: int
    head_v: int
    n_swa: int
    n_vocab: int
    has_chat_template: bool
    has_learned_positions: bool

    def check_positions(self, asked: str, n: int, cure: str) -> None:
        """Refuse what llama.cpp would end the process for.

        Args:
            asked: what asks for so many positions, for the error.
            n: positions.
            cure: for the error; {most} stands for how many there are.

        Raises:
            ConfigError: the model has embeddings of fewer positions.
        """
        if self.has_learned_positions and n > self.n_ctx_train:
            raise too_many_positions(asked, self.n_ctx_train, cure.format(most=self.n_ctx_train))

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return asdict(self)


def too_many_positions(asked: str, n_known: int, cure: str) -> ConfigError:
    """Of a model that has learned embeddings of n_known positions."""
    return ConfigError(
        asked,
        f"the model has learned embeddings of {n_known} positions, and knows no others",
        cure,
    )


def read_shape(path: Path) -> ModelShape:
    """The shape of a GGUF file's model.

    Raises:
        ModelFileError: the file is not a GGUF file, or has no language model's metadata.
    """
    return shape_of(read_header(path), path)


def shape_of(header: GGUFHeader, path: Path) -> ModelShape:
    """As read_shape(), from a header that was read already; path is for the error."""
    metadata = header.metadata
    try:
        arch = metadata[Keys.General.ARCHITECTURE]

        def get(key: str, *default: Any) -> Any:
            key = key.format(arch=arch)
            return metadata.get(key, *default) if default else metadata[key]

        n_layer = get(Keys.LLM.BLOCK_COUNT) - get(Keys.LLM.NEXTN_PREDICT_LAYERS, 0)
        n_embd = get(Keys.LLM.EMBEDDING_LENGTH)
        n_head = _by_layer(get(Keys.Attention.HEAD_COUNT), n_layer)
        head_size = n_embd // max(n_head)
        return ModelShape(
            arch=arch,
            name=metadata.get(Keys.General.NAME, ""),
            n_layer=n_layer,
            n_ctx_train=get(Keys.LLM.CONTEXT_LENGTH),
            n_embd=n_embd,
            n_head=n_head,
            n_head_kv=_by_layer(get(Keys.Attention.HEAD_COUNT_KV, n_head), n_layer),
            head_k=get(Keys.Attention.KEY_LENGTH, head_size),
            head_v=get(Keys.Attention.VALUE_LENGTH, head_size),
            n_swa=get(Keys.Attention.SLIDING_WINDOW, 0),
            n_vocab=_length(metadata.get(Keys.Tokenizer.LIST, [])),
            has_chat_template=Keys.Tokenizer.CHAT_TEMPLATE in metadata,
            has_learned_positions=any(
                tensor.name == "position_embd.weight" for tensor in header.tensors
            ),
        )
    except (KeyError, ZeroDivisionError) as e:
        raise ModelFileError(
            str(path), f"has no language model's metadata ({e} is missing)", "give a model's GGUF"
        ) from e


def _by_layer(value: Any, n_layer: int) -> tuple[int, ...]:
    return tuple(value[:n_layer]) if isinstance(value, list | tuple) else (value,) * n_layer


def _length(tokens: list[str] | LongArray) -> int:
    return tokens.length if isinstance(tokens, LongArray) else len(tokens)
