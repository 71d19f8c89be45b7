"""Drafts of a model's own prediction heads."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local.native.head import N_BATCH, HeadContext, Hidden, check_heads  # isort: skip

import numpy as np

from snapkv_local.errors import ConfigError
from snapkv_local.llama.drafting import (
    N_MAX,
    N_MIN,
    P_MIN,
    OwnDraft,
    Tokens,
    check_numbers,
    probability,
)

if TYPE_CHECKING:
    from typing_extensions import Self

    from snapkv_local.llama.evaluation import EvaluatingLlama


class HeadDraft(OwnDraft):
    """Drafts of the model's own prediction head (multi-token prediction, DeepSeek-V3 2024), if it has one.

    The head guesses from the hidden state behind the last token, and goes on from its own. It attends to
    the tokens of the answer so far: a prefill by layer groups keeps no hidden states of a prompt. Its
    guesses need not be right, and the answer is the model's. Of several heads the first one guesses all
    tokens.

    The Llama has to be made with load_mtp=True, or with this as its draft_model.

    Args:
        n_max: tokens of a draft at most.
        n_min: a draft of fewer tokens is none.
        p_min: a draft ends before the first token whose probability is less.

    Raises:
        ConfigError: a number is out of range.
    """

    sees_hidden = True
    _rows: Hidden | None  # [n, n_embd] behind tokens from _pos on

    def __init__(self, *, n_max: int = N_MAX, n_min: int = N_MIN, p_min: float = P_MIN) -> None:
        check_numbers(n_max, n_min, p_min)
        self.n_max, self.n_min, self.p_min = n_max, n_min, p_min
        self._head: HeadContext | None = None
        self._taken: set[int] = set()  # sequences of the head, of all conversations
        self._begin(0)

    def attach(self, llm: EvaluatingLlama) -> None:
        """Make the head's context; it ends with the Llama.

        Raises:
            ConfigError: the Llama was made without its heads, or this drafts for another one.
            UnsupportedModelError: the model has no head, or one that was never run.
            OutOfMemoryError, NativeError: the context could not be made.
        """
        if not llm.model_params.load_mtp:
            raise ConfigError(
                "draft_model",
                "the model was loaded without its prediction heads",
                "make the Llama with load_mtp=True",
            )
        if self._head is not None and self._head.model is not llm._model:
            raise ConfigError(
                "draft_model", "drafts for another model already", "make one for each Llama"
            )
        check_heads(llm._model)
        if self._head is None:
            self._head = HeadContext(
                llm._model, llm.context_params, llm.n_parallel, bool(llm.verbose)
            )
            llm._stack.callback(self._head.close)

    def another(self) -> Self:
        """As OwnDraft.another(), in a sequence of the head that is free."""
        other = copy.copy(self)
        other._begin(min(set(range(len(self._taken) + 1)) - self._taken))
        return other

    def forget(self) -> None:
        """As OwnDraft.forget()."""
        self._rows = None
        if self._head is not None:
            self._head.forget(self._seq_id)

    def close(self) -> None:
        """Give the sequence back; the head's context ends with the Llama."""
        self.forget()
        self._taken.discard(self._seq_id)

    def see(self, pos: int, hidden: Hidden) -> None:
        """Take the hidden states of what was evaluated last.

        Args:
            pos: of the first token.
            hidden: [n, n_embd], behind each token.
        """
        self._pos, self._rows = pos, hidden

    def __call__(self, input_ids: Tokens, /, **_: Any) -> Tokens:
        """Guess what follows.

        Args:
            input_ids: [n], of which the last one is the token that was drawn last.

        Returns:
            [up to n_max] most likely tokens; none if the hidden state before the last token is not known.
        """
        begin, end = self._pos, len(input_ids) - 1
        if self._head is None or self._rows is None or not begin < end <= begin + len(self._rows):
            return np.empty(0, np.intc)
        begin = max(begin, end - N_BATCH)
        rows = self._rows[begin - self._pos : end - self._pos]
        tokens = input_ids[begin + 1 : end + 1].tolist()
        drafted: list[int] = []
        n_most, self.rests = 0 if self.rests else self.n_max, False
        if n_most == 0:  # it has to know these tokens later
            self._head.step(self._seq_id, begin + 1, tokens, rows)
        while len(drafted) < n_most:
            logits, state = self._head.step(self._seq_id, begin + 1, tokens, rows)
            token = int(logits.argmax())
            if self.p_min > 0 and probability(logits, token) < self.p_min:
                break
            drafted.append(token)
            begin, tokens, rows = begin + len(tokens), [token], state[None]
        return np.array(drafted if len(drafted) >= self.n_min else [], np.intc)

    def _begin(self, seq_id: int) -> None:
        self._seq_id, self._pos, self._rows = seq_id, 0, None
        self._taken.add(seq_id)
