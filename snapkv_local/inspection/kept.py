"""Which tokens of a prompt were kept, by layer and KV head."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from snapkv_local.errors import ConfigError, PromptError
from snapkv_local.prompt.build import Prompt
from snapkv_local.stats import PrefillStats

if TYPE_CHECKING:
    from snapkv_local.llama.llama import Llama

# A span holds tokens that are kept this many times as often as the average token before the window,
# and goes on over this many other tokens.
SPAN_FACTOR = 2.0
SPAN_GAP = 2


@dataclass(frozen=True)
class Span:
    """A stretch of text that was kept more often than others.

    Attributes:
        start, end: in Prompt.text, in characters.
        first, n_tokens: its tokens in the prompt.
        share: of the KV heads that keep a token, mean over its tokens.
        text: what it says.
    """

    start: int
    end: int
    first: int
    n_tokens: int
    share: float
    text: str


@dataclass(frozen=True)
class Survey:
    """What one prefill kept.

    Attributes:
        prompt: that was evaluated.
        stats: of the prefill.
        window: tokens at the end that voted, and were all kept.
        layers: the model's numbers of the layers with a cache, [n_layer_cached].
        n_head_kv: KV heads of each of these.
        counts: int32 [n_layer_cached, n_prompt], KV heads that keep each token.
        coverage: float32 [n_layer_cached, n_head_kv], share of the window's attention mass on the
            kept rows.
    """

    prompt: Prompt
    stats: PrefillStats
    window_size: int
    layers: tuple[int, ...]
    n_head_kv: int
    counts: npt.NDArray[np.int32]
    coverage: npt.NDArray[np.float32]

    def shares(self, layer: int | None = None) -> npt.NDArray[np.float64]:
        """Share of the KV heads that keep each token, [n_prompt].

        Args:
            layer: the model's number of it; None for all.

        Raises:
            ConfigError: the layer has no cache that was compressed.
        """
        rows = self.counts if layer is None else self.counts[[row_of(layer, self.layers)]]
        return np.asarray(rows.sum(axis=0) / (len(rows) * self.n_head_kv), dtype=np.float64)

    def coverage_by_layer(self) -> npt.NDArray[np.float64]:
        """Mean over the KV heads of each layer, [n_layer_cached]."""
        return np.asarray(self.coverage.mean(axis=1), dtype=np.float64)

    def spans(self, layer: int | None = None) -> list[Span]:
        """Stretches before the window that were kept more often than others, the most kept first.

        In order of what they have above the average: a long stretch that many heads keep comes
        before one token that all do.
        """
        shares = self.shares(layer)[: len(self.prompt.tokens) - self.window_size]
        mean = float(shares.mean())
        found = []
        for first, end in _runs(shares >= min(SPAN_FACTOR * mean, 1.0), SPAN_GAP):
            start, stop = int(self.prompt.starts[first]), int(self.prompt.ends()[end - 1])
            text = self.prompt.text[start:stop]
            share = float(shares[first:end].mean())
            found.append(Span(start, stop, first, end - first, share, text))
        return sorted(found, key=lambda s: -(s.share - mean) * s.n_tokens)

    def covers_question(self) -> bool:
        """Whether the window holds all of the question."""
        return self.window_size >= self.prompt.n_question

    def to_dict(self, layer: int | None = None) -> dict[str, Any]:
        """For JSON. Offsets are in characters of `text`, the prompt with its chat template."""
        starts, ends = self.prompt.starts.tolist(), self.prompt.ends().tolist()
        shares = [round(share, 4) for share in self.shares(layer).tolist()]
        return {
            "n_prompt": self.stats.n_prompt,
            "n_kept": self.stats.n_kept,
            "window_size": self.window_size,
            "window_covers_question": self.covers_question(),
            "layer": layer,
            "layers": list(self.layers),
            "n_head_kv": self.n_head_kv,
            "coverage": self.stats.coverage,
            "coverage_by_head": self.coverage.astype(float).round(4).tolist(),
            "spans": [asdict(span) for span in self.spans(layer)],
            "text": self.prompt.text,
            "document": list(self.prompt.document),
            "tokens": [
                {"start": start, "end": end, "share": share}
                for start, end, share in zip(starts, ends, shares, strict=True)
            ],
        }


def row_of(layer: int, layers: tuple[int, ...]) -> int:
    """The place of a layer among those with a compressed cache.

    Raises:
        ConfigError: it is not among them.
    """
    if layer not in layers:
        raise ConfigError(
            f"layer {layer}",
            "has no cache that is compressed",
            f"give one of {', '.join(map(str, layers))}",
        )
    return layers.index(layer)


def take(llm: Llama, prompt: Prompt) -> Survey:
    """Prefill a prompt, and see what was kept.

    Args:
        llm: with snapkv.

    Raises:
        ConfigError: made without snapkv, or the layers differ in their KV heads.
        PromptError: the prompt is longer than n_ctx, or no longer than the budget.
    """
    stats = llm.prefill(prompt.tokens)
    n_prompt = len(prompt.tokens)
    if stats.n_kept >= n_prompt:
        raise PromptError(
            f"prompt of {n_prompt} tokens",
            "fits the budget, so all of it is kept",
            f"give a budget below {n_prompt}",
        )
    kept = llm.kept_positions()
    n_layer, n_head_kv, n_kept_prefix = kept.shape
    window = stats.n_kept - n_kept_prefix
    counts = np.zeros((n_layer, n_prompt), dtype=np.int32)
    for row, positions in zip(counts, kept, strict=True):
        np.add.at(row, positions.ravel(), 1)
    counts[:, n_prompt - window :] = n_head_kv
    return Survey(
        prompt=prompt,
        stats=stats,
        window_size=window,
        layers=llm.cached_layers(),
        n_head_kv=n_head_kv,
        counts=counts,
        coverage=llm.coverage(),
    )


def _runs(chosen: npt.NDArray[np.bool_], gap: int) -> list[tuple[int, int]]:
    """Begin and end of each run of chosen positions, with up to gap others between two of them."""
    positions = np.flatnonzero(chosen)
    if len(positions) == 0:
        return []
    breaks = np.flatnonzero(np.diff(positions) > gap + 1) + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in np.split(positions, breaks)]
