"""A model's vocabulary: from text to tokens, and what each token spells."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING

from snapkv_local.errors import PromptError

if TYPE_CHECKING:
    from snapkv_local.prompt.llm import TokenModel

# what a tokenizer adds to a text: tokens that begin and end it, and a space
_AROUND = 8


def tokens(llm: TokenModel, text: bytes, add_bos: bool, special: bool) -> list[int]:
    """As llama_cpp.Llama.tokenize(), in memory that fits the text.

    llama_cpp's own clears 4 bytes for each position that the model was trained for, in every call:
    2 MiB for a model of 512K tokens, whatever the text.

    Raises:
        PromptError: llama.cpp cannot tokenize it.
    """
    import llama_cpp

    vocab = llama_cpp.llama_model_get_vocab(llm.model)
    # a token spells a byte or more, unless the tokenizer rewrites the text: then llama.cpp says
    # how many there are
    n = len(text) + _AROUND
    for _ in range(2):
        found = (llama_cpp.llama_token * n)()
        n = llama_cpp.llama_tokenize(vocab, text, len(text), found, n, add_bos, special)
        if n >= 0:
            return found[:n]
        n = -n
    raise PromptError("the text", "cannot be tokenized by llama.cpp", "give a shorter one")


def pieces(llm: TokenModel, tokens: Sequence[int], special: bool = True) -> list[bytes]:
    """What each token spells, in bytes of UTF-8; of control tokens too if special."""
    import llama_cpp

    vocab = llama_cpp.llama_model_get_vocab(llm.model)
    buffer = ctypes.create_string_buffer(256)

    def spell(token: int) -> bytes:
        nonlocal buffer
        n = int(llama_cpp.llama_token_to_piece(vocab, token, buffer, len(buffer), 0, special))
        if n < 0:  # the size that it needs
            buffer = ctypes.create_string_buffer(-n)
            n = int(llama_cpp.llama_token_to_piece(vocab, token, buffer, len(buffer), 0, special))
        return buffer.raw[:n]

    # a long prompt has most of its tokens many times
    spelt = {token: spell(token) for token in set(tokens)}
    return [spelt[token] for token in tokens]
