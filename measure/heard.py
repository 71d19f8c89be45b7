"""What is heard after a question, and how the answers of two ways of asking compare."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from snapkv_local.eval.case import Case

if TYPE_CHECKING:
    from snapkv_local.llama.llama import Llama

Logits = npt.NDArray[np.float32]
Kept = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Answer:
    """One question, asked in one way.

    Attributes:
        seconds: until the logits that the answer's first token is chosen from.
        seconds_cpu: of that, those in which this process ran; others may use the machine.
        n_evaluated: tokens that were computed for it.
        scores: of the answer's tokens, against the full cache's.
    """

    seconds: float
    seconds_cpu: float
    n_evaluated: int
    scores: dict[str, float]


@dataclass(frozen=True)
class Heard:
    """What a model says after a question.

    Attributes:
        seconds, seconds_cpu, n_evaluated: as in Answer.
        bytes_kv: what the sequence's K and V take then, by the size of its saved state.
        logits: of the question's last token, [1, n_vocab], and those that choose the answer's
            tokens, [n_gold, n_vocab].
    """

    seconds: float
    seconds_cpu: float
    n_evaluated: int
    bytes_kv: int
    logits: Logits

    @property
    def gold(self) -> Logits:
        """[n_gold, n_vocab]."""
        return self.logits[1:]


def hear(llm: Llama, case: Case, evaluate: Callable[[], int]) -> Heard:
    """Time what evaluates a question, then feed the answer's opening and score the answer."""
    from llama_cpp import llama_cpp

    started, started_cpu = time.monotonic(), time.process_time()
    n_evaluated = evaluate()
    llama_cpp.llama_synchronize(llm.ctx)
    seconds, seconds_cpu = time.monotonic() - started, time.process_time() - started_cpu
    bytes_kv = llm.bytes_of_sequence()
    last = np.ctypeslib.as_array(llm._ctx.get_logits(), (1, llm.n_vocab())).copy()
    rows = llm.logits_for([*case.after, *case.gold[:-1]])
    logits = np.concatenate([last, rows[len(case.after) - 1 :]])
    return Heard(seconds, seconds_cpu, n_evaluated, bytes_kv, logits)


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens that both begin with."""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))
    return sum(1 for _ in pairs)


def jaccard(a: Kept, b: Kept) -> npt.NDArray[np.float64]:
    """Of kept sets [..., n_kept], by layer and head: [...]."""
    flat = zip(a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]), strict=True)
    shares = [len(np.intersect1d(x, y)) / len(np.union1d(x, y)) for x, y in flat]
    return np.array(shares).reshape(a.shape[:-1])


def compare(
    a: Sequence[Heard], b: Sequence[Heard], kept_a: Sequence[Kept], kept_b: Sequence[Kept]
) -> dict[str, Any]:
    """How far b is from a: kept sets over questions, layers and heads, and logits.

    The question's last token has seen the whole document, in both: there logits differ by rounding
    alone. Those of the answer come from the kept rows.
    """
    shares = np.array([jaccard(x, y) for x, y in zip(kept_a, kept_b, strict=True)])
    same = [x.gold.argmax(1) == y.gold.argmax(1) for x, y in zip(a, b, strict=True)]
    off = [np.abs(x.logits - y.logits) for x, y in zip(a, b, strict=True)]
    return {
        "jaccard_mean": float(shares.mean()),
        "jaccard_min": float(shares.min()),
        "jaccard_mean_by_layer": [round(float(x), 4) for x in shares.mean(axis=(0, 2))],
        "logits_largest_difference_question": max(float(x[0].max()) for x in off),
        "logits_largest_difference_answer": max(float(x[1:].max()) for x in off),
        "logits_mean_difference_answer": float(np.mean([x[1:].mean() for x in off])),
        "same_answer_tokens": float(np.concatenate(same).mean()),
    }


def summary(answers: Sequence[Answer]) -> dict[str, Any]:
    """Right answers, and seconds of the first question and of the others."""
    others = [answer.seconds for answer in answers[1:]]
    return {
        "right": sum(round(answer.scores["exact"]) for answer in answers),
        "n": len(answers),
        "kl_mean": statistics.fmean(answer.scores["kl"] for answer in answers),
        "seconds_first": answers[0].seconds,
        "seconds_median": statistics.median(others),
        "seconds_max": max(others),
        "seconds_cpu_median": statistics.median(answer.seconds_cpu for answer in answers[1:]),
        "n_evaluated_median": statistics.median(answer.n_evaluated for answer in answers[1:]),
    }
