"""How the tokens of an answer are drawn: llama.cpp's samplers, by llama-server's names and defaults."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local.llama.worded import WordedLlama  # isort: skip

from llama_cpp import llama_cpp as lib
from llama_cpp._internals import LlamaSampler

from snapkv_local.native.shared import SharedContext

SAMPLERS = (
    *("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc"),
    "temperature",
)
_CANDIDATE = np.dtype([("id", np.intc), ("logit", np.single), ("p", np.single)], align=True)


@dataclass(frozen=True)
class Draws:
    """Settings of one answer.

    Attributes:
        temperature: 0 takes the most likely token.
        dynatemp_range, dynatemp_exponent: the temperature follows the entropy within this range.
        top_k: so many tokens, the likeliest; 0 for all.
        top_p: the likeliest tokens with this share of the probability; 1 for all.
        min_p: tokens with this share of the likeliest one's probability; 0 for all.
        typical_p: tokens of about the expected surprise; 1 for all.
        top_n_sigma: tokens within so many standard deviations of the largest logit; -1 for all.
        xtc_probability, xtc_threshold: how often the likeliest of tokens above a threshold are left out.
        repeat_penalty, frequency_penalty, presence_penalty: of tokens among the last repeat_last_n, of
            prompt and answer.
        dry_multiplier, dry_base, dry_allowed_length, dry_penalty_last_n, dry_sequence_breakers: of
            tokens that go on with a sequence of tokens that was there; 0 for no penalty.
        mirostat, mirostat_tau, mirostat_eta: 1 or 2 aims at a surprise, in the place of other samplers.
        min_keep: tokens that samplers leave at least.
        samplers: in their order.
        seed: of draws.
        logit_bias: added to the logits of tokens.
        notes: whether it is noted what each token is drawn from.
    """

    temperature: float = 0.8
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repeat_last_n: int = 64
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    min_keep: int = 0
    samplers: tuple[str, ...] = SAMPLERS
    seed: int = 0
    logit_bias: dict[int, float] = field(default_factory=dict)
    notes: bool = False


class DrawingLlama(WordedLlama):
    """What Llama adds to llama_cpp's samplers.

    Attributes:
        draws: how tokens are drawn, in the place of arguments such as temperature; None for these.
        drawn_from: for each token of the answer those that it was drawn from, with their
            probabilities, the likeliest first; if draws.notes says so.
    """

    draws: Draws | None = None
    drawn_from: list[list[tuple[int, float]]]
    _before: Sequence[int] = ()
    _n_seen: int | None = None

    @property
    def _input_ids(self) -> npt.NDArray[np.intc]:
        # while a token is drawn, drafts that may come behind it are no part of the text
        n = self.n_tokens if self._n_seen is None else self._n_seen
        return self.input_ids[:n]

    def sample(self, *args: Any, **kwargs: Any) -> int:
        """As llama_cpp.Llama.sample()."""
        idx: int | None = kwargs.get("idx")
        self._n_seen = None if idx is None else idx + 1
        try:
            return int(super().sample(*args, **kwargs))
        finally:
            self._n_seen = None

    def _init_sampler(self, *args: Any, **kwargs: Any) -> Any:
        draws = self.draws
        if draws is None or kwargs.get("grammar") is not None:
            return self._of_own(super()._init_sampler(*args, **kwargs))
        sampler: Any = self._of_own(LlamaSampler())
        processors = kwargs.get("logits_processor")
        if processors is not None:
            sampler.add_custom(lambda found: self._process(found, processors))
        if draws.logit_bias:
            sampler.add_logit_bias(self.n_vocab(), draws.logit_bias)
        if draws.mirostat:
            sampler.add_temp(draws.temperature)
        else:
            for name in draws.samplers:
                self._adders(sampler, draws)[name]()
        self.drawn_from = []
        if draws.notes:
            sampler.add_custom(self._note_candidates)
        match draws.mirostat:
            case 0:
                sampler.add_dist(draws.seed)
            case 1:
                sampler.add_mirostat(
                    self.n_vocab(), draws.seed, draws.mirostat_tau, draws.mirostat_eta, 100
                )
            case _:
                sampler.add_mirostat_v2(draws.seed, draws.mirostat_tau, draws.mirostat_eta)
        # what penalties look back at
        for token in self._before[-max(draws.repeat_last_n, draws.dry_penalty_last_n, 1) :]:
            sampler.accept(token)
        return sampler

    def _of_own(self, sampler: Any) -> Any:
        """A sampler of the conversation's own logits, where others have theirs in the native context."""
        if isinstance(self._ctx, SharedContext):
            sampler.__class__ = _RowSampler
        return sampler

    def _adders(self, sampler: Any, of: Draws) -> dict[str, Callable[[], None]]:
        n_ctx = self.n_ctx()  # llama.cpp sets so many tokens aside
        return {
            "penalties": lambda: sampler.add_penalties(
                self.n_vocab(),
                min(of.repeat_last_n, n_ctx),
                of.repeat_penalty,
                of.frequency_penalty,
                of.presence_penalty,
            ),
            "dry": lambda: sampler.add_dry(
                self._model,
                of.dry_multiplier,
                of.dry_base,
                of.dry_allowed_length,
                min(of.dry_penalty_last_n, n_ctx),
                list(of.dry_sequence_breakers),
            ),
            "top_n_sigma": lambda: sampler.add_top_n_sigma(of.top_n_sigma),
            "top_k": lambda: sampler.add_top_k(of.top_k),
            "typ_p": lambda: sampler.add_typical(of.typical_p, of.min_keep),
            "top_p": lambda: sampler.add_top_p(of.top_p, of.min_keep),
            "min_p": lambda: sampler.add_min_p(of.min_p, of.min_keep),
            "xtc": lambda: sampler.add_xtc(
                of.xtc_probability, of.xtc_threshold, of.min_keep, of.seed
            ),
            "temperature": lambda: sampler.add_temp_ext(
                of.temperature, of.dynatemp_range, of.dynatemp_exponent
            ),
        }

    def _process(self, found: Any, processors: Any) -> None:
        """Let processors change the logits of [n_vocab] candidates, which are in their tokens' order."""
        logits = _candidates(found)["logit"]
        for process in processors:
            logits[:] = process(self._input_ids, logits)

    def _note_candidates(self, found: Any) -> None:
        candidates = _candidates(found)
        logits = candidates["logit"].astype(np.float64)
        weights = np.exp(logits - logits.max())
        weights /= weights.sum()
        order = np.argsort(-weights, kind="stable")
        self.drawn_from.append(
            [(int(candidates["id"][i]), float(weights[i])) for i in order if weights[i] > 0]
        )


class _RowSampler(LlamaSampler):
    """Draws from the logits that a conversation has, not from those of the native context."""

    _tokens: npt.NDArray[Any] | None = None  # [n_vocab] of _CANDIDATE, in their order
    _found: npt.NDArray[Any]

    def sample(self, ctx: Any, idx: int = -1) -> int:
        """The token that is drawn from a row of logits."""
        row = ctx.logits(-idx)[0]
        if self._tokens is None:
            self._tokens = np.zeros(len(row), _CANDIDATE)
            self._tokens["id"] = np.arange(len(row))
            self._found = np.empty_like(self._tokens)
        candidates = self._found
        np.copyto(candidates, self._tokens)  # samplers change their order
        candidates["logit"] = row
        pointer = ctypes.cast(candidates.ctypes.data, ctypes.POINTER(lib.llama_token_data))
        found = lib.llama_token_data_array(data=pointer, size=len(row), selected=-1, sorted=False)
        lib.llama_sampler_apply(self.sampler, ctypes.byref(found))
        token = int(found.data[found.selected].id)
        self.accept(token)
        return token


def _candidates(found: Any) -> npt.NDArray[Any]:
    """llama_token_data_array as [size] of _CANDIDATE, in its own memory."""
    array = found.contents
    address = ctypes.addressof(array.data.contents)
    buffer = (lib.llama_token_data * array.size).from_address(address)
    return np.frombuffer(buffer, _CANDIDATE)
