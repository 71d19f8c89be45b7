"""What a conversation takes after an answer: tokens, rows kept, bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snapkv_local.llama import Llama


@dataclass(frozen=True)
class Usage:
    """Figures of a Llama's conversation.

    Attributes:
        n_prompt: tokens before the answer.
        n_kept: rows kept of the prompt that was compressed; n_prompt if none was.
        n_generated: tokens of the answer.
        bytes_kv: KV cache: the compact one, or what the conversation takes of the full one.
        bytes_kv_full: what the prompt takes of a full cache.
    """

    n_prompt: int
    n_kept: int
    n_generated: int
    bytes_kv: int
    bytes_kv_full: int

    @classmethod
    def of(cls, llm: Llama) -> Usage:
        """After an answer has ended."""
        stats = llm.last_prefill
        bytes_kv = stats.bytes_compact if stats else llm.bytes_of_sequence()
        return cls(
            n_prompt=llm.n_prompt,
            n_kept=stats.n_kept if stats else llm.n_prompt,
            # the last token is sampled and not evaluated
            n_generated=llm.n_tokens - llm.n_prompt + 1,
            bytes_kv=bytes_kv,
            bytes_kv_full=stats.bytes_full_cache if stats else bytes_kv,
        )
