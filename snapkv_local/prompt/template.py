"""The chat template: the text and the tokens that it makes of messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from snapkv_local.errors import PromptError
from snapkv_local.prompt.wording import Asked, Wording

if TYPE_CHECKING:
    from snapkv_local.prompt.llm import ChatModel, TokenModel


def chat_tokens(llm: ChatModel, content: str) -> list[int]:
    """A user's message in the chat template, up to where the answer begins.

    Raises:
        PromptError: the chat format asks for no completion.
    """
    return conversation_tokens(llm, [{"role": "user", "content": content}])


def conversation_tokens(llm: ChatModel, messages: Any, **options: Any) -> list[int]:
    """A conversation in the chat template, up to where the answer begins.

    Args:
        messages, options: as for create_chat_completion().

    Raises:
        PromptError: the chat format asks for no completion.
    """
    return _hear(llm, Asked(messages, options)).tokens(llm.tokenize, llm)


def conversation(llm: ChatModel, messages: Any, **options: Any) -> tuple[str, list[int]]:
    """The text of conversation_tokens(), too.

    Raises:
        PromptError: as conversation_tokens().
    """
    written = _hear(llm, Asked(messages, options))
    tokens = written.tokens(llm.tokenize, llm)
    return written.plain_prompt(), tokens


def heard(llm: ChatModel, content: str) -> Heard:
    """What chat_tokens() are the tokens of.

    Raises:
        PromptError: as chat_tokens(); or the chat format has no text of its own.
    """
    return _hear(llm, Asked([{"role": "user", "content": content}], {}))


def written(llm: TokenModel, asked: Asked) -> str:
    """What the chat template writes, as it is.

    Raises:
        PromptError: the chat format asks for no completion.
    """
    return _listen(llm, asked).text


@dataclass(frozen=True)
class Heard:
    """What the chat template writes, and how that is to be tokenized.

    Attributes:
        text: with marks.
        arguments: tokenize()'s other ones.
        wording: None for a chat handler of one's own.
    """

    text: str
    arguments: dict[str, Any]
    wording: Wording | None = None

    def plain(self) -> str:
        """The text without marks."""
        return self.text if self.wording is None else self.wording.plain(self.text)

    def plain_prompt(self) -> str:
        """The text up to where the answer goes on, without marks."""
        wording = self.wording
        if wording is None or wording.goes_on is None:
            return self.plain()
        head, _, _ = self.text.rpartition(wording.place)
        return wording.plain(head + wording.goes_on)

    def tokens(self, tokenize: Callable[..., list[int]], llm: ChatModel) -> list[int]:
        """Its tokens."""
        with llm.worded(self.wording):
            return tokenize(self.text.encode(), **self.arguments)


def _hear(llm: ChatModel, asked: Asked) -> Heard:
    marked, wording = llm.word(asked)
    return replace(_listen(llm, marked), wording=wording)


def _listen(llm: TokenModel, asked: Asked) -> Heard:
    import llama_cpp

    listener: Any = _Listener(llm)
    try:
        llama_cpp.Llama.create_chat_completion(listener, list(asked.messages), **asked.options)
    except _Heard as e:
        return e.heard
    raise PromptError(
        f"chat format {llm.chat_format}", "asks for no completion", "take another --chat-format"
    )


class _Heard(Exception):
    def __init__(self, heard: Heard) -> None:
        self.heard = heard


class _Listener:
    """A Llama in whose place llama_cpp answers a chat, to hear what would be completed.

    llama_cpp has no function for that: what applies a template also asks for the completion.
    """

    def __init__(self, llm: TokenModel) -> None:
        self._llm = llm

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    def tokenize(self, text: bytes, **arguments: Any) -> list[int]:
        raise _Heard(Heard(text.decode(), arguments))

    def create_completion(self, *, prompt: str, **_: Any) -> Any:
        # of a format that leaves that to it
        begins = self._llm._model.add_bos_token()
        raise _Heard(Heard(prompt, {"add_bos": begins, "special": True}))
