"""Drafts: tokens that are guessed cheaply, and that the model checks in one batch."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local.native.context import SnapKVContext  # isort: skip

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp.llama_speculative import LlamaDraftModel

from snapkv_local.errors import ConfigError

if TYPE_CHECKING:
    from typing_extensions import Self

    from snapkv_local.llama.evaluation import EvaluatingLlama

N_MAX, N_MIN, P_MIN = 3, 0, 0.0  # llama-server's defaults
# llama.cpp's own: vocabularies of one family may be padded to other sizes
_MOST_PADDING = 128

Tokens = npt.NDArray[np.intc]


class OwnDraft(LlamaDraftModel):
    """Drafts for one conversation, of which it knows more than each call says.

    Attributes:
        sees_hidden: see() gets the hidden states of what the model has evaluated.
        rests: nothing that it guesses next is looked at.
    """

    sees_hidden = False
    rests = False

    @abstractmethod
    def another(self) -> Self:
        """The like for another conversation of the same model, to be closed with it.

        Raises:
            ConfigError: there is no room for one.
        """

    @abstractmethod
    def forget(self) -> None:
        """Another conversation follows: nothing of this one is left."""

    def see(self, pos: int, hidden: npt.NDArray[np.float32]) -> None:
        """Take hidden states, [n, n_embd], behind tokens from a position on."""

    def close(self) -> None:
        """Free what the drafts take."""


class ModelDraft(OwnDraft):
    """Drafts of a second, smaller model with the same vocabulary.

    Its conversation is that of the model it drafts for, in its own cache, which its own SnapKVConfig
    compresses: a prompt where that model's prompt ends, and a long answer when the cells run out. Drafts
    that were refused are removed; they never vote on rows. One Llama has one ModelDraft: it holds a
    conversation. Where the Llama has several, so has the smaller model, each in a sequence of its own.

    Args:
        llm: the smaller model. It must be able to take all tokens of the other one's context.
        n_max: tokens of a draft at most.
        n_min: a draft of fewer tokens is none.
        p_min: a draft ends before the first token whose probability is less.

    Attributes:
        on_step: called while a prompt is prefilled, and before each token; what it raises ends the draft.

    Raises:
        ConfigError: a number is out of range, the smaller model has recurrent layers and no compact cache,
            or it has a vault.
        OutOfMemoryError: there is no room for the states of its recurrent layers.
    """

    def __init__(
        self, llm: EvaluatingLlama, *, n_max: int = N_MAX, n_min: int = N_MIN, p_min: float = P_MIN
    ) -> None:
        check_numbers(n_max, n_min, p_min)
        reserve(llm, "the draft model")
        if llm.snapkv is not None and llm.snapkv.vault != "off":
            raise ConfigError(
                f"vault={llm.snapkv.vault}",
                "chooses rows for each question, and a draft model is asked none",
                "leave it out of the draft model's settings",
            )
        self.llm = llm
        self.n_max, self.n_min, self.p_min = n_max, n_min, p_min
        self.on_step: Callable[[], object] | None = None

    def check(self, llm: EvaluatingLlama) -> None:
        """Look whether it can draft for a model.

        Raises:
            ConfigError: it cannot.
        """
        reason = _difference(llm, self.llm)
        if reason is not None:
            raise ConfigError(
                "draft_model", reason, "choose a smaller model of the same family, or leave it out"
            )
        if self.llm.n_parallel < llm.n_parallel:
            raise ConfigError(
                "draft_model",
                f"has room for {self.llm.n_parallel} conversations, and the model for "
                f"{llm.n_parallel}",
                "give both the same {n_parallel}",
            )
        if self.llm.n_ctx() < llm.n_ctx():
            raise ConfigError(
                "draft_model",
                f"its context of {self.llm.n_ctx():,} tokens is shorter than {llm.n_ctx():,}",
                "give both the same {n_ctx}",
            )

    def __call__(self, input_ids: Tokens, /, **_: Any) -> Tokens:
        """Guess what follows.

        Args:
            input_ids: [n], of which the last one is the token that was drawn last.

        Returns:
            [up to n_max] most likely tokens.
        """
        if self.rests:
            self.rests = False
            return np.empty(0, np.intc)
        llm = self.llm
        llm.prefill_progress = self._progress
        try:
            self._follow(input_ids)
            llm._begin_look()
            # those that are only guessed must evict nothing: they may be taken back
            n_most = min(self.n_max, llm.n_free() + 1)
            drafted: list[int] = []
            while len(drafted) < n_most:
                self._step()
                logits = llm.last_logits()
                token = int(logits.argmax())
                if self.p_min > 0 and probability(logits, token) < self.p_min:
                    break
                drafted.append(token)
                if len(drafted) < n_most:
                    llm.eval([token])
        finally:
            llm.prefill_progress, llm._follows = None, False
            llm.leave_steps()
        return np.array(drafted if len(drafted) >= self.n_min else [], np.intc)

    def another(self) -> Self:
        """As OwnDraft.another(), in a sequence of the smaller model that is free."""
        other = copy.copy(self)
        other.llm, other.on_step = cast(Any, self.llm).conversation(), None
        return other

    def forget(self) -> None:
        """As OwnDraft.forget()."""
        self.llm.reset()
        self.llm._trim()

    def close(self) -> None:
        """Free the smaller model; of one of several conversations the sequence."""
        self.llm.close()

    def _follow(self, ids: Tokens) -> None:
        """Evaluate what it has not seen. The last token's logits are there then."""
        llm = self.llm
        n = min(llm.n_tokens, len(ids) - 1)
        differs = np.flatnonzero(llm.input_ids[:n] != ids[:n])
        llm.n_tokens = int(differs[0]) if len(differs) else n  # eval() removes what follows
        new = ids[llm.n_tokens :].tolist()
        if (
            len(new) > self.n_max + 1
        ):  # a prompt, and the answer's first token: that is no part of it
            llm.eval(new[:-1])
            new = new[-1:]
        llm._follows = True  # no place that another prompt goes back to
        llm.eval(new)

    def _step(self) -> None:
        if self.on_step is not None:
            self.on_step()

    def _progress(self, _done: int, _total: int) -> None:
        self._step()


class PromptLookup(OwnDraft):
    """Drafts from the conversation itself: what followed its last tokens when they were there before.

    That is prompt lookup decoding (Saxena 2023). Answers that quote the prompt gain by it.

    Args:
        n_max: tokens of a draft at most.
        n_gram: how many last tokens are looked for; where these are nowhere, one less, down to 2.
    """

    def __init__(self, n_max: int = 10, n_gram: int = 3) -> None:
        if n_max < 0 or n_gram < 2:
            raise ConfigError(
                f"n_max={n_max}, n_gram={n_gram}", "are out of range", "give 0 and 2, or more"
            )
        self.n_max, self.n_gram = n_max, n_gram
        self.forget()

    def another(self) -> Self:
        """As OwnDraft.another()."""
        return type(self)(self.n_max, self.n_gram)

    def forget(self) -> None:
        """As OwnDraft.forget()."""
        self._known: Tokens = np.empty(0, np.intc)
        # where each n-gram was last seen: the position behind it
        self._after: dict[tuple[int, ...], int] = {}

    def __call__(self, input_ids: Tokens, /, **_: Any) -> Tokens:
        """[up to n_max] tokens that followed the last ones; none if they are new."""
        self._learn(input_ids)
        for n in range(min(self.n_gram, len(input_ids)), 1, -1):
            at = self._after.get(tuple(input_ids[-n:].tolist()))
            if at is not None:
                return input_ids[at : at + self.n_max].copy()
        return np.empty(0, np.intc)

    def _learn(self, ids: Tokens) -> None:
        """Note the n-grams that end before the last token, which has nothing behind it yet."""
        start = len(self._known)
        if start >= len(ids) or not np.array_equal(self._known, ids[:start]):
            start, self._after = 0, {}
        self._known = ids[:-1].copy()
        known = self._known[max(0, start - self.n_gram) :].tolist()
        offset = len(self._known) - len(known)
        for end in range(start + 1, len(self._known) + 1):
            for n in range(2, min(self.n_gram, end) + 1):
                self._after[tuple(known[end - n - offset : end - offset])] = end


def reserve(llm: EvaluatingLlama, subject: str) -> None:
    """Take the memory for states of recurrent layers, which go back to before a draft that is wrong.

    Raises:
        ConfigError: the model has such layers, and no compact cache, which keeps states.
        OutOfMemoryError: there is none.
    """
    if isinstance(llm._ctx, SnapKVContext):
        llm._ctx.reserve_looks()
    elif llm._is_hybrid or llm._is_recurrent:
        raise ConfigError(
            subject,
            "drafts that are wrong are taken back, and recurrent layers have no earlier state without a "
            "compact cache",
            "give {budget}, or leave it out",
        )


def refuse_recall(llm: EvaluatingLlama, subject: str) -> None:
    """Drafts that are wrong would vote, too, and what they ask for would stay.

    Raises:
        ConfigError: rows are recalled while the model answers.
    """
    if llm.snapkv is not None and llm.snapkv.recall:
        raise ConfigError(
            subject,
            "a recall is asked for by an answer's tokens, and drafts may be none of it",
            "leave out one of the two, drafts or recall",
        )


def check_numbers(n_max: int, n_min: int, p_min: float) -> None:
    """Look whether numbers of a draft are in their ranges.

    Raises:
        ConfigError: one is not.
    """
    for name, value, most in (("n_max", n_max, 2**31 - 1), ("n_min", n_min, n_max)):
        if not 0 <= value <= most:
            raise ConfigError(
                f"{name}={value}", "is out of range", f"give a number from 0 to {most}"
            )
    if not 0 <= p_min <= 1:
        raise ConfigError(f"p_min={p_min}", "is no probability", "give a number from 0 to 1")


def probability(logits: npt.NDArray[np.float32], token: int) -> float:
    """Of the most likely token."""
    return float(1 / np.exp(logits - logits[token]).sum())


def _difference(main: EvaluatingLlama, draft: EvaluatingLlama) -> str | None:
    """What tells two vocabularies apart; None where their tokens mean the same.

    As llama.cpp sees it, but for the first tokens, which it does not look at.
    """
    vocabs = [llama_cpp.llama_model_get_vocab(llm.model) for llm in (main, draft)]
    kinds = [llama_cpp.llama_vocab_type(vocab) for vocab in vocabs]
    if kinds[0] != kinds[1]:
        return "its vocabulary is of another kind"
    n_main, n_draft = (llm.n_vocab() for llm in (main, draft))
    most = 0 if kinds[0] == llama_cpp.LLAMA_VOCAB_TYPE_NONE else _MOST_PADDING
    if abs(n_main - n_draft) > most:
        return f"its vocabulary has {n_draft:,} tokens, and the model's has {n_main:,}"
    if kinds[0] == llama_cpp.LLAMA_VOCAB_TYPE_NONE:
        return None
    for name in ("bos", "eos"):
        adds = getattr(llama_cpp, f"llama_vocab_get_add_{name}")
        special = [
            int(getattr(llama_cpp, f"llama_vocab_{name}")(vocab)) if adds(vocab) else None
            for vocab in vocabs
        ]
        if special[0] != special[1]:
            return f"its {name.upper()} token is {special[1]}, and the model's is {special[0]}"
    for token in range(min(n_main, n_draft)):
        texts = [llama_cpp.llama_vocab_get_text(vocab, token) for vocab in vocabs]
        if texts[0] != texts[1]:
            ours, its = (text.decode("utf-8", "replace") for text in texts)
            return f"its token {token} is {its!r}, and the model's is {ours!r}"
    return None
