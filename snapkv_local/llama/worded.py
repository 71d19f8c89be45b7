"""Chats whose contents are words: only a template's own text becomes control tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local.llama.evaluation import EvaluatingLlama  # isort: skip

from llama_cpp import llama_cpp as lib
from llama_cpp.llama_tokenizer import LlamaTokenizer

from snapkv_local.errors import ConversationError
from snapkv_local.llama import chat_template
from snapkv_local.prompt import template, vocabulary
from snapkv_local.prompt.wording import Asked, ControlWords, Wording, free_mark, put

_CONTROL = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN


class WordedLlama(EvaluatingLlama):
    """What Llama does with a chat's text."""

    _wording: Wording | None = None
    _words: tuple[str | None, ControlWords] | None = None

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """As llama_cpp.Llama.tokenize(); control words of a chat's contents stay text."""
        wording = self._wording
        if not special or wording is None or not wording.concerns(written := text.decode()):
            return self._tokens(text, add_bos, special)
        whole = wording.whole(written)
        if not wording.concerns(whole):
            return self._tokens(whole.encode(), add_bos, special=True)
        # where a text begins, and ends for models that say so
        around = self._tokens(b"", add_bos, special=False)
        n_begin = int(around[:1] == [self.token_bos()])
        tokens = around[:n_begin]
        for part, is_control in wording.parts(whole):
            if is_control:
                tokens.append(wording.words.token(part))
            else:
                tokens += self._text_tokens(wording, part)
        return tokens + around[n_begin:]

    def _tokens(self, text: bytes, add_bos: bool, special: bool) -> list[int]:
        """Of a text as it is; a tokenizer of the caller's own has its own way."""
        if type(self.tokenizer_) is not LlamaTokenizer:
            return list(super().tokenize(text, add_bos, special))
        return vocabulary.tokens(self, text, add_bos, special)

    def _text_tokens(self, wording: Wording, text: str) -> list[int]:
        """Of what stands between two control words, as llama.cpp tokenizes it there."""
        tokens: list[int] = []
        for part, is_spelt in wording.spelt(text):
            for piece in part if is_spelt else [part]:
                tokens += self._begun(piece) if not tokens else self._within(piece)
        return tokens

    def _begun(self, text: str) -> list[int]:
        return self._tokens(text.encode(), add_bos=False, special=False)

    def _within(self, text: str) -> list[int]:
        """Tokens of a text that does not begin one: without the space that some models put there."""
        if not vocabulary.pieces(self, self._begun("x"))[0].startswith(b" "):
            return self._begun(text)
        return self._begun("\n" + text)[len(self._begun("\n")) :]

    def set_chat_template(self, template: str) -> None:
        """Write chats with a template in the place of the model's own.

        Args:
            template: Jinja; or a name of one that llama.cpp has, such as llama3, which knows no tools.

        Raises:
            ConfigError: it is neither.
        """
        self._chat_handlers[chat_template.DEFAULT] = chat_template.handler(self, template)
        self.chat_format, self.chat_handler = chat_template.DEFAULT, None
        self.metadata["tokenizer.chat_template"] = template
        self._words = None

    def control_words(self) -> ControlWords:
        """The model's, and those that its chat template writes turns with."""
        if self._words is None or self._words[0] != self.chat_format:
            words, defined = self._vocabulary()
            probe = Asked([{"role": "user", "content": "?"}], {})
            try:
                written = template.written(self, probe) if self.chat_handler is None else ""
            except Exception:  # a template that wants other messages
                written = ""
            turns = {word: token for word, token in defined.items() if word in written}
            self._words = (self.chat_format, words.with_turns(turns))
        return self._words[1]

    def _vocabulary(self) -> tuple[ControlWords, dict[str, int]]:
        """Control words without the template's, and the words that are tokens in any text."""
        vocab = lib.llama_model_get_vocab(self.model)
        control: dict[str, int] = {}
        defined: dict[str, int] = {}
        left, right = set(), set()
        for token in range(self.n_vocab()):
            attributes = lib.llama_vocab_get_attr(vocab, token)
            if not attributes & (_CONTROL | lib.LLAMA_TOKEN_ATTR_USER_DEFINED):
                continue
            # what is not UTF-8 is in no text; one character has no inside for a mark
            word = cast(bytes, lib.llama_vocab_get_text(vocab, token)).decode(errors="ignore")
            if len(word) < 2:
                continue
            (control if attributes & _CONTROL else defined)[word] = token
            if attributes & lib.LLAMA_TOKEN_ATTR_LSTRIP:
                left.add(word)
            if attributes & lib.LLAMA_TOKEN_ATTR_RSTRIP:
                right.add(word)
        return ControlWords(control, {}, frozenset(left), frozenset(right)), defined

    def word(self, asked: Asked) -> tuple[Asked, Wording | None]:
        """What the template is to be given, and how the tokenizer has to read what it writes.

        Raises:
            ConversationError: the conversation ends in a way that no answer can go on from.
        """
        goes_on = _goes_on(asked)
        words = self.control_words()
        texts = asked.texts()
        if self.chat_handler is not None or type(self.tokenizer_) is not LlamaTokenizer:
            # which may read control words wherever they are, as those for pictures do
            return asked.changed(lambda text, _: put(" ", text, words.suspects(text))), None
        wording = Wording(words, free_mark(texts))
        if goes_on is not None:
            wording.goes_on = wording.marked(goes_on, "assistant")
            wording.waits = True
            wording.place = _place(texts)
            last = {**asked.messages[-1], "content": wording.place}
            asked = Asked([*asked.messages[:-1], last], asked.options)
        marked = asked.changed(wording.marked)
        if any(map(words.may_hold, texts)):
            everywhere = asked.changed(wording.marked_everywhere)
            with contextlib.suppress(Exception):  # which the template will raise again
                if words.written(template.written(self, marked)) != words.written(
                    template.written(self, everywhere)
                ):
                    # the template takes words out of texts, or puts its own before them
                    marked = everywhere
        return marked, wording

    @contextlib.contextmanager
    def worded(self, wording: Wording | None) -> Iterator[None]:
        """Tokenize by a wording."""
        before, self._wording = self._wording, wording
        try:
            yield
        finally:
            self._wording = before

    def _create_completion(self, *args: Any, **kwargs: Any) -> Any:
        prompt = kwargs.get("prompt")
        wording = self._wording
        # now: llama_cpp tokenizes a stream's text when its first chunk is read
        if isinstance(prompt, str) and wording is not None and wording.concerns(prompt):
            begin = [self.token_bos()] if self._model.add_bos_token() else []
            kwargs["prompt"] = begin + self.tokenize(prompt.encode(), add_bos=False, special=True)
        return super()._create_completion(*args, **kwargs)


def _goes_on(asked: Asked) -> str | None:
    """The text of an answer that is there already; None if the last message is not the assistant's.

    Raises:
        ConversationError: there are two, or it is a call.
    """
    roles = [message.get("role") for message in asked.messages]
    if roles[-1:] != ["assistant"]:
        return None
    if roles[-2:] == ["assistant"] * 2:
        raise ConversationError(
            "the last two messages", "are the assistant's", "join them: the answer goes on from one"
        )
    last = asked.messages[-1]
    if last.get("tool_calls") or last.get("function_call"):
        raise ConversationError(
            "the last message", "is a call of the assistant's", "append the function's result"
        )
    content = last.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content)


def _place(texts: list[str]) -> str:
    """A text that no other has."""
    numbered = (f"7 SNAPKV GOES ON {i} 7" for i in range(len(texts) + 1))
    return next(place for place in numbered if not any(place in text for text in texts))
