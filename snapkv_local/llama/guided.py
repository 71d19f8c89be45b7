"""Answers that are held to grammars: JSON schemas by llguidance, GBNF by llama.cpp."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local.llama.draws import DrawingLlama  # isort: skip

import llama_cpp
from llama_cpp.llama_grammar import LlamaGrammar

from snapkv_local.errors import GrammarError
from snapkv_local.grammar.answer_grammar import AnswerGrammar
from snapkv_local.grammar.guide import Guide
from snapkv_local.prompt.chat import Chat

# of GBNF: llama.cpp's parser goes down once for each, on the stack of the process
_MOST_NESTED = 1_000
# literals, classes and comments
_NO_BRACKETS = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|#[^\n]*')


class GuidedLlama(DrawingLlama):
    """What Llama adds to llama_cpp's grammars.

    create_chat_completion() holds answers to response_format, json_schema too, and to the
    parameters of the function in tool_choice, and refuses what cannot be obeyed. An AnswerGrammar may
    be given in the place of a LlamaGrammar.

    Attributes:
        on_token: called before each token of an answer; what it raises ends the answer.
    """

    on_token: Callable[[], object] | None = None
    _guide: Guide | None = None
    _allowed: npt.NDArray[np.bool_]
    _held_to: AnswerGrammar | None = None

    def check_grammar(self, grammar: AnswerGrammar) -> None:
        """Try whether answers can be held to a grammar.

        Raises:
            GrammarError: they cannot.
        """
        self._ready_guide().open(grammar)

    def sample(self, *args: Any, **kwargs: Any) -> int:
        """As llama_cpp.Llama.sample(); the grammar goes on with the token.

        Raises:
            GrammarError: the grammar is too much for the next token.
        """
        if self.on_token is not None:
            self.on_token()
        token: int = super().sample(*args, **kwargs)
        grammar = kwargs.get("grammar")
        if isinstance(grammar, AnswerGrammar) and not self._ends(token):
            self._allowed = self._ready_guide().accept(grammar, token)
        return token

    def _create_completion(self, *args: Any, **kwargs: Any) -> Any:
        if self._held_to is not None:
            kwargs["grammar"] = self._held_to
        return super()._create_completion(*args, **kwargs)

    def _init_sampler(self, *args: Any, **kwargs: Any) -> Any:
        grammar = kwargs.get("grammar")
        if isinstance(grammar, AnswerGrammar):
            self._allowed = self._ready_guide().open(grammar)
            processors = [*(kwargs.get("logits_processor") or ()), self._only_allowed]
            kwargs["logits_processor"] = llama_cpp.LogitsProcessorList(processors)
            kwargs["grammar"] = None
        elif grammar is not None:
            self._check_gbnf(grammar)
        return super()._init_sampler(*args, **kwargs)

    def _only_allowed(
        self, _ids: npt.NDArray[np.intc], scores: npt.NDArray[np.single]
    ) -> npt.NDArray[np.single]:
        return np.where(self._allowed, scores, np.single(-np.inf))

    def _check_gbnf(self, grammar: LlamaGrammar) -> None:
        """llama_cpp does not look at what llama.cpp says of a grammar."""
        text = grammar._grammar
        if _nested(text) > _MOST_NESTED:
            raise GrammarError(
                "grammar",
                f"has brackets more than {_MOST_NESTED:,} levels deep",
                "for JSON pass response_format, which has no such limit",
            )
        lib = llama_cpp.llama_cpp
        vocab = lib.llama_model_get_vocab(self.model)
        sampler = lib.llama_sampler_init_grammar(vocab, text.encode(), grammar._root.encode())
        if not sampler:
            raise GrammarError("grammar", "is not GBNF that llama.cpp can use", "correct it")
        lib.llama_sampler_free(sampler)

    def _ready_guide(self) -> Guide:
        if self._guide is None:
            self._guide = Guide(self, super().tokenize)
            self._stack.callback(self._guide.close)
        return self._guide

    def _ends(self, token: int) -> bool:
        vocab = llama_cpp.llama_cpp.llama_model_get_vocab(self.model)
        return bool(llama_cpp.llama_cpp.llama_vocab_is_eog(vocab, token))


def asked_for(chat: Chat | None) -> AnswerGrammar | None:
    """What the arguments of create_chat_completion() hold the answer to.

    Where a function must be called, llama_cpp takes its arguments only.

    Raises:
        GrammarError: answers cannot be held to it.
    """
    given = {} if chat is None else chat.options
    choice = given.get("tool_choice") or given.get("function_call")
    if isinstance(choice, dict):
        name = choice.get("function", choice).get("name")
        tools = given.get("tools") or [{"function": each} for each in given.get("functions") or ()]
        for tool in tools:
            if tool["function"]["name"] == name:
                parameters = tool["function"].get("parameters")
                return AnswerGrammar.of_arguments(parameters, f"{name}.parameters")
        return None  # which llama_cpp will say
    form = given.get("response_format") or {}
    if form.get("type") == "json_schema":
        return AnswerGrammar.of_schema(form.get("json_schema", {}).get("schema"))
    if form.get("type") != "json_object":
        return None
    schema = form.get("schema")
    return AnswerGrammar.any_object() if schema is None else AnswerGrammar.of_schema(schema)


def _nested(gbnf: str) -> int:
    """Levels of brackets."""
    most = level = 0
    for character in _NO_BRACKETS.sub("", gbnf):
        level += (character == "(") - (character == ")")
        most = max(most, level)
    return most
