"""Where a prompt's parts are: positions that stay, the question, sentences."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from snapkv_local.errors import ConfigError
from snapkv_local.spelling import Span, Spelling

if TYPE_CHECKING:
    from snapkv_local.config import SnapKVConfig
    from snapkv_local.evaluation import EvaluatingLlama
    from snapkv_local.worded import WordedLlama

# stands in the place of a user's words
_WORDS = "7 SNAPKV WORDS 7"
# tokens of a question; fewer say too little to vote alone
_LEAST_ASKED = 4
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")


@dataclass(frozen=True)
class Parts:
    """Of one prompt, in positions.

    Attributes:
        protected: [begin, end) spans whose rows always stay.
        question: [begin, end) of the question's words, for policies that ask.
        asked: the same, for votes that go to the last tokens where it is not known.
        sentences: first position of each sentence, ascending.
    """

    protected: tuple[Span, ...] = ()
    question: Span | None = None
    asked: Span | None = None
    sentences: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Chat:
    """What create_chat_completion() was asked: messages, and what else the template may show."""

    messages: Sequence[Any]
    options: dict[str, Any]

    @classmethod
    def of(cls, function: Callable[..., Any], args: Any, kwargs: Any) -> Chat | None:
        """From the arguments of create_chat_completion(); None if they do not fit it."""
        try:
            given = inspect.signature(function).bind(*args, **kwargs).arguments
        except TypeError:
            return None  # which the function itself will say
        return cls(given.pop("messages"), given)

    def text(self, i: int) -> str:
        """A message's text, its parts one below the other."""
        content = self.messages[i].get("content") or ""
        if isinstance(content, str):
            return content.strip()
        return "\n".join(part.get("text") or "" for part in content).strip()

    def n_system(self) -> int:
        """System messages at the front."""
        roles = [message["role"] for message in self.messages]
        return next((i for i, role in enumerate(roles) if role != "system"), len(roles))

    def last_user(self) -> int | None:
        """The last message of the user."""
        users = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        return users[-1] if users else None


class Marks:
    """What is known of a Llama's prompts beside their tokens.

    Attributes:
        protected: spans that the caller has named.
        question: that the caller has named; it is taken instead of a chat's.
        chat: that is being answered; None for a text.
    """

    def __init__(self) -> None:
        self.protected: tuple[Span, ...] = ()
        self.question: Span | None = None
        self.chat: Chat | None = None
        self._prompt: npt.NDArray[np.int32] = np.empty(0, np.int32)
        self._found = Parts()

    def begin(self, llm: EvaluatingLlama, tokens: Sequence[int]) -> None:
        """Look for the parts of a prompt, as far as the settings ask for them.

        Raises:
            ConfigError: they are not to be found.
        """
        self._prompt = np.array(tokens, np.int32)
        self._found = _find(llm, self._prompt.tolist(), self.chat, self.question is not None)

    def of(self, llm: EvaluatingLlama, tokens: npt.NDArray[np.int32]) -> Parts:
        """The parts of a prompt: that of begin(), with or without what followed it, or another."""
        n = len(self._prompt)
        goes_on = 0 < n <= len(tokens) and np.array_equal(tokens[:n], self._prompt)
        found = self._found if goes_on else _find(llm, tokens.tolist(), None, True)
        return Parts(
            protected=(*self.protected, *found.protected),
            question=self.question or found.question,
            asked=self.question if self.question and _seeks(llm.snapkv) else found.asked,
            sentences=found.sentences,
        )


def _find(llm: EvaluatingLlama, tokens: list[int], chat: Chat | None, is_named: bool) -> Parts:
    """The parts that the Llama's settings ask for.

    Args:
        is_named: the question need not be found.
    """
    config = llm.snapkv
    policy = None if config is None else config.chooser()
    protects = config is not None and config.protect_system and chat is not None
    asked = None
    if config is not None and chat is not None and not is_named and _seeks(config):
        asked = asked_of(llm, tokens, chat, config.window)
    if policy is None and not protects:
        return Parts(asked=asked)
    from snapkv_local import prompt

    spelling = Spelling.of(prompt.pieces(llm, tokens))
    found = Parts()
    if chat is not None:
        asks = policy is not None and policy.asks() and not is_named
        found = locate(llm, spelling, chat, protects=protects, asks=asks)
    if asked is not None:
        found = replace(found, asked=asked)
    if policy is not None:
        found = replace(found, question=found.question or asked)
        starts = {0, *spelling.sentences(0, len(spelling.data))}
        starts |= {span[0] for span in (found.question,) if span is not None}
        found = replace(found, sentences=tuple(sorted(starts)))
    return found


def _seeks(config: SnapKVConfig | None) -> bool:
    """Do the question's words vote where it is known, and the last tokens where it is not?"""
    if config is None:
        return False
    policy = config.chooser()
    return config.voters == "question" if policy is None else policy.seeks() and not policy.asks()


def asked_of(llm: EvaluatingLlama, tokens: list[int], chat: Chat, window: int) -> Span | None:
    """[begin, end) of the question that a chat's prompt ends with, before the template's words.

    None if there is none to be told: another turn is the last one, the template changes the words,
    the last paragraph is longer than two windows, as a document without an empty line before its
    question is, or shorter than _LEAST_ASKED tokens.
    """
    from snapkv_local import prompt

    i = chat.last_user()
    if i is None or i != len(chat.messages) - 1 or llm.chat_handler is not None:
        return None  # a handler of one's own may do more than write a text
    try:
        _, tail = frame(llm, chat)
    except Exception:  # whatever a template says to words that nobody has said: the chat is fine
        return None
    words = _BLANK_LINE.split(chat.text(i))[-1].strip().encode()
    first = max(0, len(tokens) - 2 * window)
    spelling = Spelling.of(prompt.pieces(llm, tokens[first:]))
    # between the words and the tail a template may have kept spaces
    before = spelling.data.removesuffix(tail).rstrip()
    if not words or not spelling.data.endswith(tail) or not before.endswith(words):
        return None
    begin, end = spelling.span(len(before) - len(words), len(before))
    return (first + begin, first + end) if end - begin >= _LEAST_ASKED else None


def locate(
    llm: EvaluatingLlama, spelling: Spelling, chat: Chat, *, protects: bool, asks: bool
) -> Parts:
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


def frame(llm: EvaluatingLlama, chat: Chat) -> tuple[bytes, bytes]:
    """What the template writes before the first user's text, system prompt included, and at the end.

    Raises:
        ConfigError: it changes a user's words.
    """
    from snapkv_local import prompt

    messages = [*chat.messages[: chat.n_system()], {"role": "user", "content": _WORDS}]
    tokens = prompt.conversation_tokens(cast("WordedLlama", llm), messages, **chat.options)
    head, words, tail = b"".join(prompt.pieces(llm, tokens)).rpartition(_WORDS.encode())
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


def check(parts: Parts, n_prompt: int, n_kept: int, window: int) -> None:
    """Refuse parts with which a prompt cannot be compressed.

    Args:
        n_kept: rows for each KV head, the window included.

    Raises:
        ConfigError: more rows are protected than kept, or most of the prompt is the question.
    """
    if n_kept >= n_prompt:
        return
    stays = np.zeros(max(0, n_prompt - window), dtype=bool)
    for begin, end in parts.protected:
        stays[max(0, begin) : max(0, end)] = True
    n = int(stays.sum())
    if n + window > n_kept:
        raise ConfigError(
            f"a budget of {n_kept} rows",
            f"does not hold {n} protected ones, such as the system prompt's, and the window's "
            f"{window}",
            f"raise it to {n + window} or more, or protect less",
        )
    begin, end = parts.question or (0, 0)
    if end - begin > n_prompt // 2:
        raise ConfigError(
            f"the question of {end - begin} tokens",
            f"is most of the prompt of {n_prompt}: a document and a question are told apart by an "
            "empty line between them",
            "put one there, say where the question is with Llama.set_question(), or choose policy "
            "snapkv",
        )
