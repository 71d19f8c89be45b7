"""One answer of a model, with its figures."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from snapkv_local.cli.sampling import Sampling
from snapkv_local.hardware import peak_rss
from snapkv_local.llama.usage import Usage
from snapkv_local.report.units import size
from snapkv_local.stats import PrefillStats, RecallStats

if TYPE_CHECKING:
    from snapkv_local.llama.llama import Llama

Message = dict[str, str]


@dataclass(frozen=True)
class Answer:
    """What was said and what it took.

    Attributes:
        text: of the answer.
        finish_reason: "stop", or "length" where max_tokens, the context or the cache's cells ended
            it.
        n_prompt, n_cached, n_kept, n_generated, n_drafted, n_accepted, n_looks, n_again, bytes_kv,
            bytes_decode_cells, bytes_kv_full: as in Usage.
        seconds_first_token: from the question to the first text.
        decode_tokens_per_second: after the first text; None for a shorter answer.
        peak_rss: largest resident memory of this process so far, in bytes.
        prefill: of the prompt that was compressed last, if any.
        recalls: of the answer since then.
    """

    text: str
    finish_reason: str
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
    seconds_first_token: float
    decode_tokens_per_second: float | None
    peak_rss: int
    prefill: PrefillStats | None
    recalls: list[RecallStats] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return asdict(self)

    def line(self) -> str:
        """The figures in one line."""
        parts = [
            f"kept {self.n_kept:,} of {self.n_prompt:,} prompt tokens",
            self._kv(),
            f"first token after {self.seconds_first_token:.1f} s",
        ]
        if self.decode_tokens_per_second is not None:
            parts.append(f"then {self.decode_tokens_per_second:.1f} tokens/s")
        if self.n_drafted > 0:
            parts.append(f"{self.n_accepted:,} of {self.n_drafted:,} guessed tokens were right")
        if self.n_again > 0:
            parts.append(f"{self.n_again:,} tokens evaluated again for {self.n_looks:,} looks")
        if self.prefill is not None and self.prefill.layer_group > 0:
            parts += _unusual(self.prefill)
        if self.recalls:
            n, n_rows = len(self.recalls), sum(recall.n_rows for recall in self.recalls)
            seconds = sum(recall.seconds_wait + recall.seconds_copy for recall in self.recalls)
            parts.append(f"{n:,} recalls of {n_rows:,} rows, {1000 * seconds / n:.0f} ms each")
        return " · ".join(parts)

    def _kv(self) -> str:
        # like with like: of a full cache, too, only the prompt's rows are counted
        if self.prefill is None or self.n_kept == self.n_prompt:
            return f"KV {size(self.bytes_kv)}"
        rows = f"KV {size(self.bytes_kv - self.bytes_decode_cells)} of {size(self.bytes_kv_full)}"
        return f"{rows}, and {size(self.bytes_decode_cells)} of room for new tokens"


def _unusual(stats: PrefillStats) -> list[str]:
    """What is not exact, where memory is short, or fused ops are missing."""
    parts = []
    if stats.n_selected > 0:
        parts.append(
            f"selective: {stats.n_selected:,} rows after layer {stats.n_layer_all}, "
            f"{stats.layer_work:.0%} of the work"
        )
    elif stats.settled > 0:
        parts.append(f"exact: looks ahead agreed to {stats.settled:.0%} only")
    if stats.bytes_hidden_host > 0:
        parts.append(f"hidden state: {size(stats.bytes_hidden_host)} in host memory")
    if stats.bytes_weights_lent > 0:
        parts.append(f"lent weights: {size(stats.bytes_weights_lent)}")
    if stats.ratio_fused < 1:
        parts.append(f"ggml's ops in {1 - stats.ratio_fused:.0%} of the layers")
    return parts


def ask(
    llm: Llama,
    messages: list[Message],
    *,
    max_tokens: int,
    sampling: Sampling,
    on_text: Callable[[str], object],
) -> Answer:
    """Let the model answer a conversation.

    Args:
        messages: of a chat, the question last.
        max_tokens: at most; 0 for no limit but the context's.
        sampling: how its tokens are drawn.
        on_text: gets the answer piece by piece.
    """
    started = time.monotonic()
    pieces: list[str] = []
    finish_reason = ""
    first: tuple[float, int] | None = None
    chunks: Any = llm.create_chat_completion(
        messages,
        max_tokens=max_tokens,
        **sampling.arguments(),
        stream=True,
    )
    for chunk in chunks:
        if first is None:
            first = (time.monotonic(), llm.n_tokens)
        choice = chunk["choices"][0]
        finish_reason = choice["finish_reason"] or finish_reason
        piece = choice["delta"].get("content") or ""
        if piece:
            pieces.append(piece)
            on_text(piece)
    ended = time.monotonic()
    first = first or (ended, llm.n_tokens)
    steps = llm.n_tokens - first[1]
    return Answer(
        text="".join(pieces),
        finish_reason=finish_reason,
        **asdict(Usage.of(llm)),
        seconds_first_token=first[0] - started,
        decode_tokens_per_second=steps / (ended - first[0]) if steps > 0 else None,
        peak_rss=peak_rss(),
        prefill=llm.last_prefill,
        recalls=llm.recalls() if llm.snapkv is not None else [],
    )
