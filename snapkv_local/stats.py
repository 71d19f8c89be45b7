"""What a prefill did, and a recall: tokens, rows, bytes, seconds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class PrefillStats:
    """Figures of one prefill.

    Attributes:
        n_prompt: tokens of the prompt.
        n_kept: rows kept for each KV head, the window included; n_prompt if nothing was evicted.
        n_cached: tokens at the prompt's start whose K and V came from the vault.
        layer_group: G, the cached layers whose full KV was live at once; 0 if nothing was evicted.
        n_ubatch: tokens that were computed at once.
        n_voters: tokens that voted for rows; 0 if nothing was evicted.
        n_after_voters: tokens of the prompt after these.
        bytes_kv: KV cache of the context, that of sliding-window layers and the states of recurrent layers
            included.
        bytes_recurrent: of these, the states of recurrent layers.
        bytes_kept: of these, what the kept rows take, by the size of the sequence's saved state; the
            rest is room for new tokens.
        bytes_kv_group: full KV of one layer group.
        bytes_hidden: hidden state between layer groups, on the device and in host memory.
        bytes_hidden_host: of these, in host memory beside a GPU.
        bytes_weights_lent: weights lent to GPUs, of layers that are in host memory (partial offload), or
            on another GPU.
        bytes_mask: persistent attention mask.
        bytes_vault: K and V of all prompt tokens in host memory, and queries; 0 without a vault.
        bytes_state: states of recurrent layers in host memory, which the conversation and the vault can
            go back to; 0 for models without such layers.
        bytes_compute: largest compute buffer during the prefill.
        bytes_kv_full: KV cache that the prompt would take without eviction.
        seconds_prefill: all of it, scoring and eviction included.
        seconds_score: scoring alone.
        seconds_evict: eviction alone.
        ratio_fused: share of the cached layers that fused ops scored and evicted; the others were
            done by ops of ggml. 0 if nothing was evicted.
        coverage: share of the window's attention mass that lies on the kept rows, mean over cached
            layers and KV heads; 1 if nothing was evicted.
        n_selected: rows that later layers have computed, with a selective prefill; 0 without one, and
            where the votes have not settled, so that all layers have computed all rows.
        n_layer_all: layers of the model that all rows went through.
        settled: of the votes of later layers, at the last look ahead, the share on rows that the look
            before would have chosen; 0 after one look, or none.
        layer_work: rows that went through a layer, as share of all rows through all layers.
        seconds_select: looking ahead, choosing rows and bringing them together.
    """

    n_prompt: int
    n_kept: int
    n_cached: int
    layer_group: int
    n_ubatch: int
    n_voters: int
    n_after_voters: int
    bytes_kv: int
    bytes_recurrent: int
    bytes_kept: int
    bytes_kv_group: int
    bytes_hidden: int
    bytes_hidden_host: int
    bytes_weights_lent: int
    bytes_mask: int
    bytes_vault: int
    bytes_state: int
    bytes_compute: int
    bytes_kv_full: int
    seconds_prefill: float
    seconds_score: float
    seconds_evict: float
    ratio_fused: float
    coverage: float
    # an exact prefill has none of these, nor has a session that was saved before there was another kind
    n_selected: int = 0
    n_layer_all: int = 0
    settled: float = 0.0
    layer_work: float = 1.0
    seconds_select: float = 0.0

    @classmethod
    def of(cls, counted: Any, bytes_rows: int) -> PrefillStats:
        """What the engine counted (struct llama_snapkv_stats), and what the rows take."""
        names = {field.name for field in fields(cls)} - {"bytes_kept"}
        found = {name: getattr(counted, name) for name in names}
        return cls(**found, bytes_kept=min(bytes_rows, found["bytes_kv"]))

    def to_dict(self) -> dict[str, int | float]:
        """The fields by name, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class RecallStats:
    """Figures of one recall while answering.

    Attributes:
        pos: position of the last token before it.
        n_rows: rows that have been replaced, each of one KV head, in all layers.
        n_bytes: written into the cache.
        seconds_rank: votes and ranks, with the vault's index where it was made.
        seconds_wait: of these, what the answer waited for.
        seconds_copy: copying.
        bytes_votes: that votes were counted in, in host memory, the most until then.
        bytes_index: of the vault's index, in host memory.
    """

    pos: int
    n_rows: int
    n_bytes: int
    seconds_rank: float
    seconds_wait: float
    seconds_copy: float
    bytes_votes: int
    bytes_index: int

    @classmethod
    def of(cls, counted: Any) -> RecallStats:
        """What the engine counted (struct llama_snapkv_recall_event)."""
        return cls(**{field.name: getattr(counted, field.name) for field in fields(cls)})

    def to_dict(self) -> dict[str, int | float]:
        """The fields by name, for JSON."""
        return asdict(self)
