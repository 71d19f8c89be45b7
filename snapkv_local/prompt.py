"""A document and a question as a model's prompt, and where each token stands in the text."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from snapkv_local.errors import PromptError
from snapkv_local.spelling import Span, Spelling
from snapkv_local.wording import Asked, Wording

if TYPE_CHECKING:
    from snapkv_local.evaluation import EvaluatingLlama
    from snapkv_local.worded import WordedLlama

SEPARATOR = "\n\n"


@dataclass(frozen=True)
class Prompt:
    """A prompt, with the text that its tokens spell.

    Attributes:
        tokens: [n_prompt].
        text: of all tokens, those of the chat template included.
        starts: int64 [n_prompt], where each token begins in text, in characters. A character of
            several tokens belongs to the first.
        document: begin and end of the document in text, in characters.
        n_question: tokens from the question's first to the prompt's last.
        system: [begin, end) of the tokens before the document.
        question: [begin, end) of the tokens of the question's words.
    """

    tokens: list[int]
    text: str
    starts: npt.NDArray[np.int64]
    document: tuple[int, int]
    n_question: int
    system: Span = (0, 0)
    question: Span | None = None

    def ends(self) -> npt.NDArray[np.int64]:
        """int64 [n_prompt], where each token ends in text, in characters."""
        return np.append(self.starts[1:], len(self.text))


def build(llm: WordedLlama, document: str, question: str, raw: bool = False) -> Prompt:
    """The prompt that asks a question about a document.

    Args:
        document: text; may be empty.
        question: what follows it.
        raw: "document, empty line, question" as it is. Otherwise in the model's chat template, as
            create_chat_completion() has it.

    Raises:
        PromptError: the chat template or the tokenizer changes the text.
    """
    content = document + SEPARATOR + question if document else question
    tokens = llm.tokenize(content.encode(), special=False) if raw else chat_tokens(llm, content)
    spelling = Spelling.of(pieces(llm, tokens))
    data = spelling.data
    # rfind: a template's own words come before
    at = data.rfind(content.encode())
    if at < 0:
        raise PromptError(
            "the document",
            "is not spelt by its tokens: the chat template or the tokenizer changes it",
            "take another model",
        )
    n_characters = characters_before(data)
    first = int(n_characters[at])
    end = at + len(content.encode())
    span = spelling.span(end - len(question.encode()), end)
    return Prompt(
        tokens=tokens,
        text=data.decode("utf-8", errors="replace"),
        starts=n_characters[spelling.begins[:-1]],
        document=(first, first + len(document)),
        n_question=len(tokens) - span[0],
        system=spelling.before(at),
        question=span,
    )


def characters_before(data: bytes) -> npt.NDArray[np.int64]:
    """int64 [len(data) + 1]: how many characters of UTF-8 begin before each byte."""
    begins = (np.frombuffer(data, dtype=np.uint8) & 0xC0) != 0x80
    return np.concatenate([[0], np.cumsum(begins)]).astype(np.int64)


def pieces(llm: EvaluatingLlama, tokens: list[int]) -> list[bytes]:
    """What each token spells, in bytes of UTF-8; of control tokens too."""
    import llama_cpp

    vocab = llama_cpp.llama_model_get_vocab(llm.model)
    buffer = ctypes.create_string_buffer(256)

    def spell(token: int) -> int:
        special = True
        n_bytes = len(buffer)
        return int(llama_cpp.llama_token_to_piece(vocab, token, buffer, n_bytes, 0, special))

    found = []
    for token in tokens:
        n = spell(token)
        if n < 0:  # the size that it needs
            buffer = ctypes.create_string_buffer(-n)
            n = spell(token)
        found.append(buffer.raw[:n])
    return found


def chat_tokens(llm: WordedLlama, content: str) -> list[int]:
    """A user's message in the chat template, up to where the answer begins.

    Raises:
        PromptError: the chat format asks for no completion.
    """
    return conversation_tokens(llm, [{"role": "user", "content": content}])


def conversation_tokens(llm: WordedLlama, messages: Any, **options: Any) -> list[int]:
    """A conversation in the chat template, up to where the answer begins.

    Args:
        messages, options: as for create_chat_completion().

    Raises:
        PromptError: the chat format asks for no completion.
    """
    return _hear(llm, Asked(messages, options)).tokens(llm.tokenize, llm)


def heard(llm: WordedLlama, content: str) -> Heard:
    """What chat_tokens() are the tokens of.

    Raises:
        PromptError: as chat_tokens(); or the chat format has no text of its own.
    """
    return _hear(llm, Asked([{"role": "user", "content": content}], {}))


def written(llm: EvaluatingLlama, asked: Asked) -> str:
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

    def tokens(self, tokenize: Callable[..., list[int]], llm: WordedLlama) -> list[int]:
        """Its tokens."""
        with llm.worded(self.wording):
            return tokenize(self.text.encode(), **self.arguments)


def _hear(llm: WordedLlama, asked: Asked) -> Heard:
    marked, wording = llm.word(asked)
    return replace(_listen(llm, marked), wording=wording)


def _listen(llm: EvaluatingLlama, asked: Asked) -> Heard:
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

    def __init__(self, llm: EvaluatingLlama) -> None:
        self._llm = llm

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    def tokenize(self, text: bytes, **arguments: Any) -> list[int]:
        raise _Heard(Heard(text.decode(), arguments))

    def create_completion(self, *, prompt: str, **_: Any) -> Any:
        # of a format that leaves that to it
        begins = self._llm._model.add_bos_token()
        raise _Heard(Heard(prompt, {"add_bos": begins, "special": True}))
