"""Where a chat's prompt has its system prompt and its question."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast

from snapkv_local.errors import ConfigError
from snapkv_local.prompt import template, vocabulary
from snapkv_local.prompt.chat import Chat
from snapkv_local.prompt.parts import Parts
from snapkv_local.prompt.spelling import Span, Spelling

if TYPE_CHECKING:
    from snapkv_local.prompt.llm import ChatModel, TokenModel


# stands in the place of a user's words
_WORDS = "7 SNAPKV WORDS 7"
# tokens of a question; fewer say too little to vote alone
_LEAST_ASKED = 4
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")


def asked_of(llm: TokenModel, tokens: list[int], chat: Chat, window_size: int) -> Span | None:
    """[begin, end) of the question that a chat's prompt ends with, before the template's words.

    None if there is none to be told: another turn is the last one, the template changes the words,
    the last paragraph is longer than two windows, as a document without an empty line before its
    question is, or shorter than _LEAST_ASKED tokens.
    """
    i = chat.last_user()
    if i is None or i != len(chat.messages) - 1 or llm.chat_handler is not None:
        return None  # a handler of one's own may do more than write a text
    try:
        _, tail = frame(llm, chat)
    except Exception:  # whatever a template says to words that nobody has said: the chat is fine
        return None
    words = _BLANK_LINE.split(chat.text(i))[-1].strip().encode()
    first = max(0, len(tokens) - 2 * window_size)
    spelling = Spelling.of(vocabulary.pieces(llm, tokens[first:]))
    # between the words and the tail a template may have kept spaces
    before = spelling.data.removesuffix(tail).rstrip()
    if not words or not spelling.data.endswith(tail) or not before.endswith(words):
        return None
    begin, end = spelling.span(len(before) - len(words), len(before))
    return (first + begin, first + end) if end - begin >= _LEAST_ASKED else None


def locate(llm: TokenModel, spelling: Spelling, chat: Chat, *, protects: bool, asks: bool) -> Parts:
    """System prompt and question of a chat.

    The system prompt is what stands before the first user's text, with the template's own words.
    The question is the last paragraph of the last user turn: a document stands before it, after an
    empty line.

    Args:
        spelling: of the chat's tokens.
        protects, asks: which of the two to find.

    Raises:
        ConfigError: the template or the tokenizer changes the text, or nobody asks.
    """
    head, tail = frame(llm, chat)
    return Parts(
        protected=(system_of(spelling, chat, head),) if protects else (),
        question=question_of(spelling, chat, tail) if asks else None,
    )


def frame(llm: TokenModel, chat: Chat) -> tuple[bytes, bytes]:
    """What the template writes before the first user's text, system prompt included, and at the end.

    Raises:
        ConfigError: it changes a user's words.
    """
    messages = [*chat.messages[: chat.n_system()], {"role": "user", "content": _WORDS}]
    tokens = template.conversation_tokens(cast("ChatModel", llm), messages, **chat.options)
    head, words, tail = b"".join(vocabulary.pieces(llm, tokens)).rpartition(_WORDS.encode())
    if not words:
        raise _not_found("the user's text")
    return head, tail


def system_of(spelling: Spelling, chat: Chat, head: bytes) -> Span:
    """[0, end) of what stands before the first user's text.

    Raises:
        ConfigError: a system message is not there.
    """
    # a conversation that does not begin with the user has the template's words in common
    pairs = enumerate(zip(spelling.data, head, strict=False))
    n_shared = next((i for i, (one, other) in pairs if one != other), len(head))
    at = 0
    for i in range(chat.n_system()):
        at = spelling.data.find(chat.text(i).encode(), at, n_shared)
        if at < 0:
            raise _not_found("the system prompt")
    return spelling.before(n_shared)


def question_of(spelling: Spelling, chat: Chat, tail: bytes) -> Span | None:
    """[begin, end) of the last paragraph of the last user turn; None if that has no text.

    Raises:
        ConfigError: it is not there.
    """
    i = chat.last_user()
    if i is None or not chat.text(i):
        return None
    text, data = chat.text(i).encode(), spelling.data
    ends = i == len(chat.messages) - 1 and data.endswith(tail)
    end = len(data) - len(tail) if ends else len(data)
    at = data.rfind(text, 0, end)
    # between the words and the tail a template may have kept spaces, and nothing else
    if at < 0 or (ends and data[at + len(text) : end].strip()):
        raise _not_found("the last user turn")
    n_words = len(_BLANK_LINE.split(chat.text(i))[-1].strip().encode())
    return spelling.span(at + len(text) - n_words, at + len(text))


def _not_found(what: str) -> ConfigError:
    return ConfigError(
        what,
        "is not to be found in the prompt: the chat template or the tokenizer changes it",
        "name positions with Llama.set_protected() and Llama.set_question(), or do without "
        "protect_system and with policy snapkv",
    )
