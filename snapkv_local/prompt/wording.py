"""Which words of a chat's prompt are the template's: only those become control tokens.

A template's text and its contents (messages, tools, documents) come as one string to a tokenizer that
takes every `<|im_end|>` for the end of a turn, whoever wrote it. Before the template is applied, control
words of contents therefore get a mark, a character that no text has; afterwards only words without one
become control tokens, and the marks are taken out.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal

from snapkv_local.errors import ConversationError
from snapkv_local.prompt.spelling import Span

# noncharacters of Unicode, which no text interchanges
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]

# whose a text is; names are what templates compare with words of their own
Whose = Literal["user", "assistant", "name", "tool"]
_NAMES = ("role", "type")


@dataclass(frozen=True)
class ControlWords:
    """What control tokens are written as.

    Attributes:
        tokens: the token of each word that llama.cpp reads as one only where it is told to.
        turns: of each word that it always reads as one, though the chat template writes turns
            with it.
        left, right: words that swallow white space on that side.
    """

    tokens: Mapping[str, int]
    turns: Mapping[str, int] = field(default_factory=dict)
    left: frozenset[str] = frozenset()
    right: frozenset[str] = frozenset()

    @cached_property
    def _all(self) -> frozenset[str]:
        return frozenset(self.tokens) | frozenset(self.turns)

    @cached_property
    def _first(self) -> re.Pattern[str]:
        firsts = {re.escape(word[0]) for word in self._all}
        return re.compile("|".join(sorted(firsts)) or r"(?!)")

    @cached_property
    def _beginnings(self) -> frozenset[str]:
        return frozenset(word[:n] for word in self._all for n in range(1, len(word)))

    def with_turns(self, turns: Mapping[str, int]) -> ControlWords:
        """The same, and others that the template writes turns with."""
        return replace(self, turns=turns)

    def token(self, word: str) -> int:
        """What a word becomes."""
        return self.tokens[word] if word in self.tokens else self.turns[word]

    @cached_property
    def _endings(self) -> frozenset[str]:
        return frozenset(word[n:] for word in self._all for n in range(1, len(word)))

    def may_hold(self, text: str) -> bool:
        """Whether a part of a word is in a text, as far as a word can be made of it and others."""
        if self._first.search(text):
            return True
        most = max(map(len, self._all), default=0)
        start = text.lstrip()[:most]
        is_ending = any(start[:n] in self._endings for n in range(1, len(start) + 1))
        return is_ending or (0 < len(text) < most and any(text in word for word in self._all))

    def firsts(self, text: str) -> list[int]:
        """Where a character stands that a word begins with."""
        return [found.start() for found in self._first.finditer(text)]

    def suspects(self, text: str, turns: bool = True) -> list[int]:
        """Where a word begins, or where the text ends with the beginning of one.

        Args:
            turns: among the words are those that the template writes turns with.
        """
        words = self._all if turns else frozenset(self.tokens)
        lengths = {len(word) for word in words}
        end = len(text.rstrip())  # a template may cut white space
        found = []
        for at in self.firsts(text):
            is_word = any(text[at : at + n] in words for n in lengths)
            near = at + max(lengths, default=0) > end
            if is_word or (near and {text[at:], text[at:end]} & self._beginnings):
                found.append(at)
        return found

    def find(self, text: str) -> list[Span]:
        """[begin, end) of the words, ascending; where two overlap the longer one, as in llama.cpp."""
        lengths = {len(word) for word in self._all}
        spans = [
            (at, at + n)
            for at in self.firsts(text)
            for n in lengths
            if text[at : at + n] in self._all
        ]
        taken: set[int] = set()
        found = []
        for begin, end in sorted(spans, key=lambda span: span[0] - span[1]):
            if taken.isdisjoint(range(begin, end)):
                taken.update(range(begin, end))
                found.append((begin, end))
        return sorted(found)

    def written(self, text: str) -> list[str]:
        """The words in a text, one after the other."""
        return [text[slice(*span)] for span in self.find(text)]


@dataclass
class Wording:
    """How one chat is written.

    Attributes:
        words: of the model and its template.
        mark: the character that is put into control words of contents.
        goes_on: the text of the answer that is there already, with marks; None if it begins anew.
        place: what the template was given instead of it.
        waits: the text that has the place was not seen yet.
    """

    words: ControlWords
    mark: str
    goes_on: str | None = None
    place: str = ""
    waits: bool = False

    def concerns(self, text: str) -> bool:
        """Whether a rendered text has anything to take care of."""
        return self.waits or self.mark in text or _escaped(self.mark) in text

    def whole(self, text: str) -> str:
        """A rendered text up to where the answer goes on, with marks.

        Raises:
            ConversationError: the template has no place for an answer that is there already.
        """
        if not self.waits or self.goes_on is None:
            return text
        head, found, _ = text.rpartition(self.place)
        if not found:
            raise ConversationError(
                "the last message",
                "is the assistant's, and the chat template does not write it",
                "let the conversation end with a user's message",
            )
        self.waits = False
        return head + self.goes_on

    def marked(self, text: str, whose: Whose) -> str:
        """A content's text with a mark in each word that may become a control token."""
        return put(self.mark, text, self.words.suspects(text, turns=whose != "assistant"))

    def marked_everywhere(self, text: str, whose: Whose) -> str:
        """The same with a mark wherever a word might begin or end, whatever the template does to it."""
        marked = put(self.mark, text, self.words.firsts(text))
        return self.mark + marked if whose in ("user", "assistant") else marked

    def plain(self, text: str) -> str:
        """A text without marks."""
        # as tojson writes them that keeps to ASCII
        return text.replace(self.mark, "").replace(_escaped(self.mark), "")

    def cut(self, text: str, n: int) -> int:
        """Where in a text with marks the first n characters of plain(text) end."""
        at = n
        while (missing := n - len(self.plain(text[:at]))) > 0 and at < len(text):
            at += missing
        return at

    def parts(self, text: str) -> Iterator[tuple[str, bool]]:
        """A text with marks in parts: control words (True), and the text between them."""
        at = 0
        before = ""
        for begin, end in [*self.words.find(text), (len(text), len(text))]:
            word = text[begin:end]
            between = text[at:begin]
            # llama.cpp's isspace(), in the C locale
            if before in self.words.right:
                between = between.lstrip(" \t\n\v\f\r")
            if word in self.words.left:
                between = between.rstrip(" \t\n\v\f\r")
            if between:
                yield between, False
            if word:
                yield word, True
            at, before = end, word

    def spelt(self, text: str) -> Iterator[tuple[str, bool]]:
        """A text between control words in parts, without marks: words to spell (True), the others.

        llama.cpp reads the former as tokens in any text.
        """
        turns = {word[0] + self.mark + word[1:]: word for word in self.words.turns}
        pattern = "|".join(map(re.escape, sorted(turns, key=len, reverse=True)))
        for part in re.split(f"({pattern})", text) if turns else [text]:
            plain = turns.get(part) or self.plain(part)
            if plain:
                yield plain, part in turns


@dataclass(frozen=True)
class Asked:
    """What a chat's template is given.

    Attributes:
        messages: of the conversation.
        options: other arguments of create_chat_completion(); tools and functions have texts, too.
    """

    messages: Sequence[Any]
    options: Mapping[str, Any]

    def changed(self, change: Callable[[str, Whose], str]) -> Asked:
        """With each text changed."""
        options = dict(self.options)
        for name in ("tools", "functions"):
            if options.get(name):
                options[name] = _mapped(options[name], partial(_as_of, change, "tool"))
        return Asked([_changed(message, change) for message in self.messages], options)

    def texts(self) -> list[str]:
        """Every text that a template may write."""
        found: list[str] = []

        def note(text: str, whose: Whose) -> str:
            found.append(text)
            return text

        self.changed(note)
        return found


def _changed(message: Mapping[str, Any], change: Callable[[str, Whose], str]) -> dict[str, Any]:
    return {
        key: _mapped(value, partial(_as_of, change, _whose(message, key)))
        for key, value in message.items()
    }


def _as_of(change: Callable[[str, Whose], str], whose: Whose, text: str) -> str:
    return change(text, whose)


def _whose(message: Mapping[str, Any], key: str) -> Whose:
    if key in _NAMES:
        return "name"
    return "assistant" if message.get("role") == "assistant" else "user"


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """A value of JSON with its texts changed, keys too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {
            change(key) if isinstance(key, str) else key: _mapped(entry, change)
            for key, entry in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_mapped(entry, change) for entry in value]
    return value


def put(mark: str, text: str, at: Sequence[int]) -> str:
    """A text with a mark behind each of some characters."""
    ends = [0, *(i + 1 for i in at), len(text)]
    return mark.join(text[a:b] for a, b in itertools.pairwise(ends))


def free_mark(texts: Sequence[str]) -> str:
    """A mark that no text has.

    Raises:
        ConversationError: there is none.
    """
    for mark in _MARKS:
        if not any(mark in text or _escaped(mark) in text for text in texts):
            return mark
    raise ConversationError(
        "the messages",
        "have all of the 32 noncharacters U+FDD0 to U+FDEF",
        "leave one of them out: control words of contents are marked with it",
    )


def _escaped(mark: str) -> str:
    return f"\\u{ord(mark):04x}"
