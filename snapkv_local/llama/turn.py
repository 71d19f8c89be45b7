"""What a turn is: how the tokens that come next are evaluated, decided before anything is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

import numpy as np
import numpy.typing as npt

from snapkv_local.config import SnapKVConfig


class Turn(Enum):
    """How the tokens that come next are evaluated.

    Attributes:
        DECODE: behind what the cache holds, whose free cells take them.
        PREFILL: as a prompt with all that came before. From position 0, or from where the vault ends.
        EXTEND: behind what the cache holds; then all rows compete for the budget, those kept before
            and the new ones. Where the engine cannot go on from there, it is a PREFILL.
        EVICT: within an answer, whose last tokens vote again: rows are evicted down to the budget, and
            the tokens are decoded.
        CHOOSE: within an answer, too, where rows are chosen from a whole prompt, or nothing can be
            evaluated again: all that came before is prefilled, and the tokens are decoded.
        FULL: within an answer, and no row can be evicted. Cells that are left may still take some of
            the tokens, if the others are guesses of a draft model.
    """

    DECODE = auto()
    PREFILL = auto()
    EXTEND = auto()
    EVICT = auto()
    CHOOSE = auto()
    FULL = auto()


@dataclass(frozen=True)
class Standing:
    """Where a conversation stands.

    Attributes:
        n_new: tokens that come next.
        n_tokens: tokens before them.
        n_ctx: tokens that there can be in all.
        n_free: tokens that can be decoded behind those before; None if none can, as where the
            conversation parts from the text that was compressed.
        is_answer: the tokens are the answer's own: a model has produced them.
        goes_back: the tokens before can be evaluated again, as far as EXTEND and EVICT need it. With
            recurrent layers a state must have been kept there.
    """

    n_new: int
    n_tokens: int
    n_ctx: int
    n_free: int | None
    is_answer: bool
    goes_back: bool = True


def decide(config: SnapKVConfig, at: Standing) -> Turn:
    """How tokens are evaluated with a compact cache."""
    fits = at.n_free is not None and at.n_new <= at.n_free
    if at.is_answer:
        return Turn.DECODE if fits else _eviction(config, at)
    begins = at.n_tokens == 0 and config.n_kept(at.n_new) < at.n_new
    # each question chooses its own rows
    asks_the_vault = config.vault != "off" and at.n_new > 1
    if begins or asks_the_vault:
        return Turn.PREFILL
    if fits:
        return Turn.DECODE
    # without a place to go on from, and beyond the context, where a prefill says so
    if at.n_free is None or at.n_tokens + at.n_new > at.n_ctx or config.chooser() is not None:
        return Turn.PREFILL
    again = n_again(config, at.n_new)
    return Turn.EXTEND if again < at.n_tokens and (at.goes_back or again == 0) else Turn.PREFILL


def n_again(config: SnapKVConfig, n_new: int) -> int:
    """Tokens before the new ones that EXTEND and EVICT evaluate again, at least: a window's must vote."""
    return max(0, config.window_size - n_new)


def _eviction(config: SnapKVConfig, at: Standing) -> Turn:
    """What frees cells within an answer."""
    if at.n_tokens >= at.n_ctx:
        return Turn.FULL
    if config.vault != "off" or config.chooser() is not None or not at.goes_back:
        return Turn.CHOOSE
    return Turn.EVICT if config.window_size < at.n_tokens else Turn.FULL


def n_common(a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]) -> int:
    """Tokens with which both begin."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n
