"""Llama with the tiny models of make-arch-models, which have no vocabulary: prompts are tokens at random."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from snapkv_local import Llama, SnapKVConfig

CHUNK = 64  # tokens computed at once

Make = Callable[..., Llama]


@contextmanager
def maker(path: Path, config: SnapKVConfig, **settings: Any) -> Iterator[Make]:
    """A function that makes a Llama of a model, with other settings if told; all are closed after it."""
    made: list[Llama] = []
    usual = {"n_ctx": 512, "n_batch": CHUNK, "n_ubatch": CHUNK, "verbose": False, **settings}

    def make(snapkv: SnapKVConfig | None = config, **kwargs: Any) -> Llama:
        chosen: dict[str, Any] = {"n_threads": 1, "n_threads_batch": 1, **usual, **kwargs}
        made.append(Llama(str(path), snapkv=snapkv, flash_attn=True, **chosen))
        return made[-1]

    yield make
    for llm in made:
        llm.close()


def tokens(n: int, seed: int = 1) -> list[int]:
    """Of every vocabulary."""
    return np.random.default_rng(seed).integers(3, 128, n).tolist()


def greedy(llm: Llama, prompt: list[int], n: int) -> list[int]:
    """The n most likely tokens after a prompt, one after the other."""
    found = []
    for token in llm.generate(prompt, temp=0.0):
        found.append(token)
        if len(found) == n:
            break
    return found


def logits(llm: Llama) -> np.ndarray:
    """The last ones: [n_vocab]."""
    return llm._logits(1)[0].copy()
