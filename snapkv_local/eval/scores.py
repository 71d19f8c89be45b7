"""What is measured of the logits at the gold tokens. A score is a number for each case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Seen:
    """A model's log-probabilities of one case.

    Attributes:
        log_p: [n_gold, n_vocab], row i for the i-th gold token.
        p: their exponentials; only of the full cache, where all cells need them.
        top: [n_gold], the most likely tokens.
        gold: [n_gold] tokens.
    """

    log_p: Logits
    p: Logits | None
    top: npt.NDArray[np.int64]
    gold: npt.NDArray[np.int64]

    @classmethod
    def of(cls, logits: Logits, gold: tuple[int, ...], is_full: bool = False) -> Seen:
        """From logits [n_gold, n_vocab], in float32."""
        log_p = logits - logits.max(axis=-1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(axis=-1, keepdims=True))
        p = np.exp(log_p) if is_full else None
        return cls(log_p, p, log_p.argmax(axis=-1), np.asarray(gold, dtype=np.int64))


@dataclass(frozen=True)
class Score:
    """One measure.

    Attributes:
        name: in records.
        label: for people.
        higher_is_better: or lower.
        is_share: of a whole, in [0, 1].
        measure: (what a cell saw, what the full cache saw) -> number.
    """

    name: str
    label: str
    higher_is_better: bool
    is_share: bool
    measure: Callable[[Seen, Seen], float]


def _exact(seen: Seen, full: Seen) -> float:
    """1 if every gold token is the most likely one."""
    return float((seen.top == seen.gold).all())


def _accuracy(seen: Seen, full: Seen) -> float:
    """Share of gold tokens that are the most likely ones."""
    return float((seen.top == seen.gold).mean())


def _nll(seen: Seen, full: Seen) -> float:
    """Mean negative log-likelihood of the gold tokens, in nats."""
    return float(-np.take_along_axis(seen.log_p, seen.gold[:, None], axis=-1).mean())


def _kl(seen: Seen, full: Seen) -> float:
    """Mean KL(full cache || cell) over the gold positions, in nats."""
    assert full.p is not None, "Seen.of(..., is_full=True)"
    return float(np.vdot(full.p, full.log_p - seen.log_p)) / len(full.p)


def _top1(seen: Seen, full: Seen) -> float:
    """Share of gold positions where cell and full cache have the same most likely token."""
    return float((seen.top == full.top).mean())


SCORES: dict[str, Score] = {
    score.name: score
    for score in (
        Score("exact", "exact", True, True, _exact),
        Score("accuracy", "tokens right", True, True, _accuracy),
        Score("nll", "NLL", False, False, _nll),
        Score("kl", "KL to full", False, False, _kl),
        Score("top1", "top-1 as full", True, True, _top1),
    )
}


def measure(seen: Seen, full: Seen) -> dict[str, float]:
    """All scores, by name, to 6 digits after the point."""
    return {name: round(score.measure(seen, full), 6) for name, score in SCORES.items()}
