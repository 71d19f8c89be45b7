"""A model's tokenizer and chat template, as tasks see them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from snapkv_local.llama.llama import Llama


class Tokens(Protocol):
    """From text to tokens and back."""

    def chat(self, content: str) -> list[int]:
        """A user's message, up to where the answer begins."""

    def text(self, text: str, *, begins: bool) -> list[int]:
        """A text as it is; begins: with the token that begins a text, if the model has one."""

    def spell(self, tokens: Sequence[int]) -> list[bytes]:
        """What each token spells, in UTF-8."""


class LlamaTokens:
    """Those of a model.

    A model without a chat template gets a message as plain text with an end of line.

    Args:
        llm: vocabulary and metadata are enough.
        chat_format: as for Llama; it replaces the model's template.
    """

    def __init__(self, llm: Llama, chat_format: str | None = None) -> None:
        self.llm = llm
        self.can_chat = chat_format is not None or "tokenizer.chat_template" in llm.metadata

    def chat(self, content: str) -> list[int]:
        """A user's message, up to where the answer begins."""
        from snapkv_local.prompt.template import chat_tokens

        if not self.can_chat:
            return self.text(content + "\n", begins=True)
        return chat_tokens(self.llm, content)

    def text(self, text: str, *, begins: bool) -> list[int]:
        """A text as it is."""
        return self.llm.tokenize(text.encode(), add_bos=begins, special=False)

    def spell(self, tokens: Sequence[int]) -> list[bytes]:
        """What each token spells, in UTF-8."""
        from snapkv_local.prompt.vocabulary import pieces

        return pieces(self.llm, tokens)


def open_tokens(path: Path, chat_format: str | None = None) -> LlamaTokens:
    """The tokenizer of a GGUF file; its weights are not read."""
    # only now: it loads the native library
    from snapkv_local.llama.llama import Llama

    # llama.cpp warns that a model without layers has no context
    with contextlib.redirect_stderr(io.StringIO()):
        llm = Llama(str(path), vocab_only=True, n_ctx=64, chat_format=chat_format, verbose=False)
    return LlamaTokens(llm, chat_format)
