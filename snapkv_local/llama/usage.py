"""What a conversation takes after an answer: tokens, rows kept, bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snapkv_local.llama.llama import Llama
    from snapkv_local.stats import PrefillStats


@dataclass(frozen=True)
class Usage:
    """Figures of a Llama's conversation.

    Attributes:
        n_prompt: tokens before the answer.
        n_cached: of these, those at the start that were not evaluated again.
        n_kept: rows kept of the prompt, for each KV head: of what was compressed last, and all that came
            after it; n_prompt if nothing was compressed.
        n_generated: tokens of the answer.
        n_drafted, n_accepted: guessed tokens that were looked at for the answer, and those that it has.
        n_looks, n_again: batches that had some, and tokens that were evaluated again for them, which only
            models with recurrent layers need.
        bytes_kv: KV cache: the compact one, or what the conversation takes of the full one.
        bytes_decode_cells: of bytes_kv, what was free for new tokens when the prompt was compressed.
        bytes_kv_full: what the prompt that was compressed takes of a full cache.
    """

    n_prompt: int
    n_cached: int
    n_kept: int
    n_generated: int
    n_drafted: int
    n_accepted: int
    n_looks: int
    n_again: int
    bytes_kv: int
    bytes_decode_cells: int
    bytes_kv_full: int

    @classmethod
    def of(cls, llm: Llama) -> Usage:
        """After an answer has ended."""
        stats = llm.last_prefill
        bytes_kv = stats.bytes_kv if stats else llm.bytes_of_sequence()
        return cls(
            n_prompt=llm.n_prompt,
            n_cached=llm.n_cached,
            n_kept=_n_kept(llm, stats) if stats else llm.n_prompt,
            # the last token is sampled and not evaluated
            n_generated=llm.n_tokens - llm.n_prompt + 1,
            n_drafted=llm.n_drafted,
            n_accepted=llm.n_accepted,
            n_looks=llm.n_looks,
            n_again=llm.n_again,
            bytes_kv=bytes_kv,
            bytes_decode_cells=stats.bytes_kv - stats.bytes_kept if stats else 0,
            bytes_kv_full=stats.bytes_kv_full if stats else bytes_kv,
        )


def _n_kept(llm: Llama, stats: PrefillStats) -> int:
    """Rows of the prompt: those that the last eviction before its end kept, and those since."""
    before = [found for found in (stats, *llm.evictions) if found.n_prompt <= llm.n_prompt]
    last = before[-1] if before else stats
    return last.n_kept + max(0, llm.n_prompt - last.n_prompt)
