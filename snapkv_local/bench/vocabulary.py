"""The tokenizer of a made model: another file's, or one that is made up.

The made-up one is a byte-level BPE, as GPT-2's, of the 256 byte tokens, which can write any text, and
fillers up to the real model's size, which no text becomes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf import GGUFReader, GGUFValueType, GGUFWriter, TokenType
from gguf.constants import Keys

from snapkv_local.bench.blueprint import N_CONTROL
from snapkv_local.errors import ConfigError, ModelFileError
from snapkv_local.models import files

_PREFIX = "tokenizer."


def add_made_up(writer: GGUFWriter, n_vocab: int) -> None:
    """Add a tokenizer of n_vocab tokens; byte b is token b, the last N_CONTROL are control tokens.

    Raises:
        ConfigError: n_vocab is too small for the bytes.
    """
    fillers = n_vocab - 256 - N_CONTROL
    if fillers < 1:
        raise ConfigError(
            f"n_vocab={n_vocab}", "is too small for 256 bytes and 3 tokens more", "give 259 or more"
        )
    # llama.cpp asks for merges, and gguf writes no empty list
    double = byte_token(ord(" ")) * 2
    tokens = [byte_token(byte) for byte in range(256)]
    tokens += [double, *(f"<{i}>" for i in range(1, fillers)), "<|begin|>", "<|end|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.NORMAL] * (n_vocab - 2) + [TokenType.CONTROL] * N_CONTROL)
    writer.add_token_merges([" ".join(double)])
    writer.add_bos_token_id(n_vocab - 2)
    writer.add_eos_token_id(n_vocab - 1)


def byte_token(byte: int) -> str:
    """GPT-2's character for a byte: itself if printable, else from 256 on in order."""
    if _printable(byte):
        return chr(byte)
    return chr(256 + sum(not _printable(other) for other in range(byte)))


def _printable(byte: int) -> bool:
    return 33 <= byte <= 126 or (161 <= byte <= 255 and byte != 173)


def copy(writer: GGUFWriter, path: Path) -> int:
    """Add the tokenizer of a GGUF file; its number of tokens.

    Raises:
        ModelFileError: it is not a GGUF file, or has no vocabulary.
    """
    files.check(path)
    tokens: list[Any] = []
    for name, field in GGUFReader(path).fields.items():
        if not name.startswith(_PREFIX):
            continue
        value, kind = field.contents(), field.types[0]
        if kind == GGUFValueType.ARRAY:
            if not value:
                continue  # gguf writes no empty list
            writer.add_key_value(name, value, kind, field.types[-1])
        else:
            writer.add_key_value(name, value, kind)
        if name == Keys.Tokenizer.LIST:
            tokens = value
    if not tokens:
        raise ModelFileError(
            str(path), "has no vocabulary", "leave out --vocab, and one is made up"
        )
    return len(tokens)
