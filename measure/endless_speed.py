"""A long answer: what it takes for each token, with evictions and without."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from snapkv_local.llama.llama import Llama

TEMPERATURE = 0.8
N_REPEATED = 5

Logits = npt.NDArray[np.float32]


def continued(llm: Llama, prompt: Sequence[int], n: int, seed: int) -> dict[str, Any]:
    """n tokens, with the seconds of each and what the evictions took. The first has the prefill's.

    seconds_cpu are those in which this process ran: others may use the machine.
    Decoding is measured here and not in create_completion(), where llama_cpp spells the whole answer
    again after each token.
    """
    llm.reset()
    llm.set_seed(seed)
    tokens: list[int] = []
    seconds: list[tuple[float, float]] = []
    events: list[int] = []  # tokens before which rows were evicted
    last = _clocks()
    processors = bans(llm)
    for token in llm.generate(list(prompt), temp=TEMPERATURE, logits_processor=processors):
        now = _clocks()
        tokens.append(token)
        seconds.append((round(now[0] - last[0], 6), round(now[1] - last[1], 6)))
        last = now
        if len(llm.evictions) > len(events):
            events.append(len(tokens) - 1)
        if len(tokens) == n:
            break
    return {
        "tokens": tokens,
        "seconds": [wall for wall, _ in seconds],
        "seconds_cpu": [cpu for _, cpu in seconds],
        "events": events,
        "evictions": [stats.to_dict() for stats in llm.evictions],
    }


def _clocks() -> tuple[float, float]:
    return time.monotonic(), time.process_time()


def ends(llm: Llama) -> list[int]:
    """Tokens that end an answer."""
    from llama_cpp import llama_cpp

    vocab = llama_cpp.llama_model_get_vocab(llm.model)
    return [t for t in range(llm.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocab, t)]


def bans(llm: Llama) -> Any:
    """What keeps one answer from ending and from going round in circles."""
    from llama_cpp import LogitsProcessorList

    endings, followers = ends(llm), Followers(N_REPEATED)

    def ban(ids: npt.NDArray[np.intc], scores: Logits) -> Logits:
        scores = np.copy(scores)
        scores[endings + followers.of(ids.tolist())] = -np.inf
        return scores

    return LogitsProcessorList([ban])


class Followers:
    """Tokens that would make the last ones of a text, n in all, the same as n in a row before."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._n_seen = n - 1
        self._after: dict[tuple[int, ...], set[int]] = {}

    def of(self, tokens: Sequence[int]) -> list[int]:
        """tokens: the text, longer at each call."""
        k = self._n - 1
        for i in range(self._n_seen, len(tokens)):
            self._after.setdefault(tuple(tokens[i - k : i]), set()).add(tokens[i])
        self._n_seen = max(self._n_seen, len(tokens))
        return sorted(self._after.get(tuple(tokens[-k:]), ()))


def completed(llm: Llama, prompt: Sequence[int], n: int, seed: int) -> dict[str, Any]:
    """The same through create_completion(): why it ended, and what it says."""
    llm.reset()
    answer = llm.create_completion(
        list(prompt),
        max_tokens=n,
        temperature=TEMPERATURE,
        seed=seed,
        logits_processor=bans(llm),
    )
    return {
        "finish_reason": answer["choices"][0]["finish_reason"],
        "completion_tokens": answer["usage"]["completion_tokens"],
        "n_evictions": len(llm.evictions),
        "text": answer["choices"][0]["text"],
    }


def speed(seconds: Sequence[float], events: Sequence[int], n: int) -> dict[str, Any]:
    """Tokens per second of the first and of the last n, with what evictions took and without.

    Args:
        seconds: of each token; the first token's are the prefill's and left out.
        events: tokens whose seconds have an eviction in them.
    """
    parts = {"first": range(1, n + 1), "last": range(len(seconds) - n, len(seconds))}
    found: dict[str, Any] = {}
    for name, part in parts.items():
        calm = [seconds[i] for i in part if i not in events]
        found[name] = {
            "tokens_per_second": len(calm) / sum(calm),
            "tokens_per_second_median": 1 / statistics.median(calm),
            # the least disturbed tenth
            "tokens_per_second_90": 1 / float(np.percentile(calm, 10)),
            "tokens_per_second_with_events": n / sum(seconds[i] for i in part),
            "n_events": sum(i in events for i in part),
        }
    names = [name for name in found["first"] if name.startswith("tokens_per_second")]
    found["last_to_first"] = {name: found["last"][name] / found["first"][name] for name in names}
    return found
