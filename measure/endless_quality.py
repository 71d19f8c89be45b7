"""A long text in a small cache: how near it stays to the full one, by which rows stay."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from snapkv_local.llama.llama import Llama

SINKS = 4
N_BATCH = 256  # tokens of a text that are fed at once

Logits = npt.NDArray[np.float32]


@contextmanager
def newest_stay(llm: Llama, n_sink: int) -> Iterator[None]:
    """While open, evictions keep the first `n_sink` rows and the newest, whatever the votes say."""
    assert llm.snapkv is not None
    window, context = llm.snapkv.window_size, llm._context("newest_stay")

    def overwrite(d: Any) -> None:
        ids = np.ctypeslib.as_array(d.ids, (d.n_head_kv, d.n_kept))
        ids[:] = newest(d.n_prompt - window, d.n_kept, n_sink)

    context.tap = overwrite
    try:
        yield
    finally:
        context.tap = None


def newest(n_rows: int, n_kept: int, n_sink: int) -> npt.NDArray[np.int32]:
    """[n_kept]: of n_rows the first `n_sink`, and the last ones."""
    first = np.arange(min(n_sink, n_kept))
    return np.concatenate([first, np.arange(n_rows - n_kept + len(first), n_rows)]).astype(np.int32)


def fed(
    llm: Llama, prompt: Sequence[int], text: Sequence[int], n_sink: int | None
) -> Iterator[Logits]:
    """Logits after each token of a text, [n, n_vocab] for each stretch between two evictions.

    Args:
        n_sink: of the sliding window; None for rows that are kept by the votes.
    """
    # the text's evictions are those of generation: the last tokens are taken back and vote
    llm.prefill(prompt)
    at = 0
    while True:
        if n_sink is not None:
            check_window(llm, n_sink)
        stretch = text[at : at + llm._n_free()]
        yield llm.logits_for(stretch)
        at += len(stretch)
        if at == len(text):
            return
        if llm._extend([]) is None:
            raise RuntimeError(f"no eviction at position {llm.n_tokens}")


def check_window(llm: Llama, n_sink: int) -> None:
    """That the cache holds the newest rows, and no others."""
    assert llm.snapkv is not None
    kept = llm.kept_positions()
    expected = newest(llm.n_tokens - llm.snapkv.window_size, kept.shape[2], n_sink)
    if not (kept == expected).all():
        raise RuntimeError(f"not the newest rows at position {llm.n_tokens}: {kept[0, 0]}")


def kl(full: Logits, other: Logits) -> npt.NDArray[np.float64]:
    """KL(full || other) of each row, in nats."""
    a, b = log_softmax(full), log_softmax(other)
    return np.einsum("ij,ij->i", np.exp(a), a - b).astype(np.float64)


def log_softmax(logits: Logits) -> Logits:
    """Of each row."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def compared(
    plain: Llama, compact: Llama, prompt: Sequence[int], text: Sequence[int]
) -> dict[str, list[float]]:
    """Mean KL to the full cache over each stretch, by what stays in the cache."""
    assert compact.snapkv is not None
    plain.reset()
    plain.eval(prompt)
    # 16 bits a logit: all of them in 300 MB; they move a KL by less than 1e-4
    parts = (plain.logits_for(text[at : at + N_BATCH]) for at in range(0, len(text), N_BATCH))
    full = np.concatenate([part.astype(np.float16) for part in parts])
    found: dict[str, list[float]] = {}
    for n_sink in (0, SINKS):
        compact.set_snapkv(replace(compact.snapkv, n_sink=n_sink))
        after = f", {n_sink} sinks" if n_sink else ""
        found[f"ours{after}"] = _distances(full, fed(compact, prompt, text, None))
        with newest_stay(compact, n_sink):
            found[f"sliding window{after}"] = _distances(full, fed(compact, prompt, text, n_sink))
    return found


def _distances(full: npt.NDArray[np.float16], stretches: Iterator[Logits]) -> list[float]:
    at, found = 0, []
    for logits in stretches:
        found.append(float(kl(full[at : at + len(logits)].astype(np.float32), logits).mean()))
        at += len(logits)
    return found


def nearer(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """Two ways of keeping rows: mean of each over stretches, and in how many a is nearer."""
    return {
        "means": [statistics.fmean(a), statistics.fmean(b)],
        "n_nearer": sum(x < y for x, y in zip(a, b, strict=True)),
        "n": len(a),
    }
