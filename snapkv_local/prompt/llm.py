"""What prompts are made with: the parts of a Llama that this package needs, and no more."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from snapkv_local.prompt.wording import Asked, Wording


class TokenModel(Protocol):
    """A llama_cpp.Llama, as far as tokens go."""

    chat_format: Any
    chat_handler: Any
    _model: Any

    @property
    def model(self) -> Any:
        """llama_model."""

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """As llama_cpp.Llama.tokenize()."""


class ChatModel(TokenModel, Protocol):
    """One that tells a template's words from those of a chat's contents (llama/worded.py)."""

    def word(self, asked: Asked) -> tuple[Asked, Wording | None]:
        """What the template is to be given, and how the tokenizer has to read what it writes."""

    def worded(self, wording: Wording | None) -> AbstractContextManager[None]:
        """While open, texts are tokenized by a wording."""
