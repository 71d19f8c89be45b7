"""Where a prompt's parts are: positions that stay, the question, sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from snapkv_local.prompt import vocabulary
from snapkv_local.prompt.chat import Chat
from snapkv_local.prompt.locate import asked_of, locate
from snapkv_local.prompt.parts import Parts
from snapkv_local.prompt.spelling import Span, Spelling

if TYPE_CHECKING:
    from snapkv_local.config import SnapKVConfig
    from snapkv_local.prompt.llm import TokenModel


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

    def begin(self, llm: TokenModel, config: SnapKVConfig | None, tokens: Sequence[int]) -> None:
        """Look for the parts of a prompt, as far as the settings ask for them.

        Raises:
            ConfigError: they are not to be found.
        """
        self._prompt = np.array(tokens, np.int32)
        self._found = _find(
            llm, config, self._prompt.tolist(), self.chat, self.question is not None
        )

    def of(
        self, llm: TokenModel, config: SnapKVConfig | None, tokens: npt.NDArray[np.int32]
    ) -> Parts:
        """The parts of a prompt: that of begin(), with or without what followed it, or another."""
        n = len(self._prompt)
        goes_on = 0 < n <= len(tokens) and np.array_equal(tokens[:n], self._prompt)
        found = self._found if goes_on else _find(llm, config, tokens.tolist(), None, True)
        return Parts(
            protected=(*self.protected, *found.protected),
            question=self.question or found.question,
            asked=self.question if self.question and _seeks(config) else found.asked,
            sentences=found.sentences,
        )


def _find(
    llm: TokenModel,
    config: SnapKVConfig | None,
    tokens: list[int],
    chat: Chat | None,
    is_named: bool,
) -> Parts:
    """The parts that the Llama's settings ask for.

    Args:
        is_named: the question need not be found.
    """
    policy = None if config is None else config.chooser()
    protects = config is not None and config.protect_system and chat is not None
    asked = None
    if config is not None and chat is not None and not is_named and _seeks(config):
        asked = asked_of(llm, tokens, chat, config.window_size)
    if policy is None and not protects:
        return Parts(asked=asked)
    spelling = Spelling.of(vocabulary.pieces(llm, tokens))
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
    return (
        config.observation == "question" if policy is None else policy.seeks() and not policy.asks()
    )
