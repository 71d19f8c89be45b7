"""A document and a question as a model's prompt, and where each token stands in the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from snapkv_local.errors import PromptError
from snapkv_local.prompt.spelling import Span, Spelling
from snapkv_local.prompt.template import chat_tokens
from snapkv_local.prompt.vocabulary import pieces

if TYPE_CHECKING:
    from snapkv_local.prompt.llm import ChatModel


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


def build(llm: ChatModel, document: str, question: str, raw: bool = False) -> Prompt:
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
