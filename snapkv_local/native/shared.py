"""A native context whose sequences are used at once, each by a thread of its own."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local.native import api, states  # isort: skip

from llama_cpp import _internals, llama_cpp

from snapkv_local.native.context import ContextOptions, Others, Progress, SnapKVContext
from snapkv_local.native.gate import Gate
from snapkv_local.native.steps import MOST, Step, Steps
from snapkv_local.prompt.parts import Parts
from snapkv_local.stats import PrefillStats

_Method = TypeVar("_Method", bound=Callable[..., Any])


def _gated(method: _Method) -> _Method:
    @functools.wraps(method)
    def call(self: SharedContext, *args: Any, **kwargs: Any) -> Any:
        with self.gate:
            return method(self, *args, **kwargs)

    return cast(_Method, call)


class SharedContext(SnapKVContext):
    """One of the sequences of a native context.

    Tokens that sequences decode at the same time, one by one or with drafts, share a batch. Logits are
    the sequence's own: those of the native context are of whichever was evaluated last.

    Attributes:
        gate: whose turn it is.
    """

    gate: Gate
    _rows: npt.NDArray[np.float32]  # [n, n_vocab], of what was evaluated last here
    _hidden: npt.NDArray[np.float32] | None = None  # [n, n_embd]

    def __init__(self, *, model: Any, params: Any, verbose: bool = True) -> None:
        self.gate = Gate()
        super().__init__(model=model, params=params, verbose=verbose)
        self._n_vocab = int(model.n_vocab())
        self._steps = Steps(
            self.gate,
            self.options.n_seq,
            int(llama_cpp.llama_n_batch(self.ctx)),
            self._compute,
            self._native_row,
            self._hidden_at,
            in_runs=self.is_hybrid,
        )
        self._exit_stack.callback(self._steps.close)
        self._forget_logits()

    def of_sequence(self, seq_id: int) -> SharedContext:
        """As SnapKVContext.of_sequence()."""
        is_new = seq_id not in self._sequences
        other = super().of_sequence(seq_id)
        assert isinstance(other, SharedContext)
        if is_new:
            other._forget_logits()
        return other

    def decode(self, batch: _internals.LlamaBatch) -> None:
        """Evaluate tokens of this sequence; a single one, and drafts, together with those of others.

        With drafts, that is also for tokens before them that are evaluated again, and need no logits.

        Raises:
            OutOfMemoryError, NativeError: what this sequence holds is then unknown.
        """
        raw = batch.batch
        n, n_rows = raw.n_tokens, sum(map(bool, raw.logits[: raw.n_tokens]))
        if n <= MOST and (n == n_rows or self._look > 0):
            step = Step(self.seq_id, raw.token[:n], raw.pos[0], n_rows, self.keeps_hidden)
            self._steps.compute(step, self._remove)
            assert step.rows is not None
            self._rows, self._hidden = step.rows, step.hidden
            return
        with self.gate:
            super().decode(batch)
            self._take_logits(n_rows)
            self._hidden = super().hidden(n_rows) if self.keeps_hidden else None

    def leave(self) -> None:
        """No token follows soon: steps of others need not wait for one."""
        self._steps.leave(self.seq_id)

    def logits(self, n: int) -> npt.NDArray[np.float32]:
        """Of the last n tokens that were evaluated and have some, [n, n_vocab]."""
        return self._rows[-n:]

    def hidden(self, n: int) -> npt.NDArray[np.float32]:
        """As CheckedContext.hidden(), of this sequence."""
        assert self._hidden is not None
        return self._hidden[-n:]

    def get_logits(self) -> Any:
        """Of the last batch, as llama_cpp has them."""
        return self._rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float))

    def set_logits(self, values: npt.NDArray[np.float32]) -> None:
        """Those of the last token of a state that was read, [n_vocab]."""
        self._rows = np.array(values, np.float32)[None]

    def prefill(
        self,
        tokens: npt.NDArray[np.int32],
        progress: Progress | None = None,
        parts: Parts | None = None,
        others: Others | None = None,
    ) -> PrefillStats:
        """As SnapKVContext.prefill(); other sequences go on between chunks."""
        with self._prefilling(len(tokens), progress):
            stats = super().prefill(tokens, progress, parts, others or self.gate.give_way)
            self._take_logits(1)
            return stats

    def extend(
        self,
        pos0: int,
        tokens: npt.NDArray[np.int32],
        progress: Progress | None = None,
        parts: Parts | None = None,
        others: Others | None = None,
    ) -> PrefillStats | None:
        """As SnapKVContext.extend(); other sequences go on between chunks."""
        with self._prefilling(len(tokens), progress):
            others = others or self.gate.give_way
            stats = super().extend(pos0, tokens, progress, parts, others)
            if stats is not None:
                self._take_logits(1)
            return stats

    def set_config(self, options: ContextOptions) -> None:
        """As SnapKVContext.set_config(), when no prefill runs."""
        with self._prefilling(0, None):
            super().set_config(options)

    def keep_state(self, with_logits: bool) -> None:
        """As SnapKVContext.keep_state()."""
        if not self.is_hybrid:
            return
        with self.gate:
            if with_logits and len(self._rows):
                super().set_logits(self._rows[-1])
            super().keep_state(with_logits and len(self._rows) > 0)

    def go_back(self, pos: int) -> bool:
        """As SnapKVContext.go_back()."""
        if not self.is_hybrid:
            return False
        with self.gate:
            found = [state.logits.copy() for state in states.kept(self) if state.pos == pos]
            if not super().go_back(pos):
                return False
            self._rows = np.concatenate(found).reshape(-1, self._n_vocab)
            return True

    info = _gated(SnapKVContext.info)
    reserve_looks = _gated(SnapKVContext.reserve_looks)
    begin_look = _gated(SnapKVContext.begin_look)
    kv_cache_seq_rm = _gated(SnapKVContext.kv_cache_seq_rm)
    trim = _gated(SnapKVContext.trim)
    state_before = _gated(SnapKVContext.state_before)
    state_size = _gated(SnapKVContext.state_size)
    kept = _gated(SnapKVContext.kept)
    recalls = _gated(SnapKVContext.recalls)
    layer_views = _gated(SnapKVContext.layer_views)
    clear_vault = _gated(SnapKVContext.clear_vault)

    def select_rows(self, ids: Any) -> None:
        """As SnapKVContext.select_rows(), when no prefill runs."""
        with self._prefilling(0, None):
            super().select_rows(ids)

    def forget(self) -> None:
        """Take everything away that the sequence holds."""
        with self.gate:
            self.leave()
            self.kv_cache_seq_rm(-1, -1, -1)
            self.clear_vault()
            self._forget_logits()

    def _prefilling(self, n_tokens: int, progress: Progress | None) -> Any:
        self.leave()

        def poll() -> None:
            if progress is not None:
                progress(0, max(1, n_tokens))

        return self.gate.prefill(poll)

    def _stats(self) -> PrefillStats:
        """Of this sequence's share of the context's memory."""
        stats, n = super()._stats(), self.options.n_seq
        others = stats.bytes_recurrent - stats.bytes_recurrent // n
        return replace(
            stats,
            bytes_kv=stats.bytes_kv // n,
            bytes_recurrent=stats.bytes_recurrent // n,
            bytes_kv_full=stats.bytes_kv_full - others,
        )

    def _remove(self, seq_id: int, pos: int) -> bool:
        if llama_cpp.llama_memory_seq_rm(self.memory, seq_id, pos, -1):
            return True
        # a look begins where its states are put aside
        return bool(
            self._sequences[seq_id]._look > 0
            and api.llama_snapkv_take_back(self.ctx, seq_id, pos) == pos
        )

    def _native_row(self, i: int) -> npt.NDArray[np.float32]:
        return np.ctypeslib.as_array(self.get_logits_ith(i), shape=(self._n_vocab,))

    def _take_logits(self, n: int) -> None:
        native = super().get_logits()  # type: ignore[no-untyped-call]
        self._rows = np.ctypeslib.as_array(native, shape=(n, self._n_vocab)).copy()

    def _forget_logits(self) -> None:
        self._rows = np.empty((0, self._n_vocab), np.float32)


def kind_of(options: ContextOptions | None) -> type[SnapKVContext]:
    """The class of compact contexts with these options."""
    return SharedContext if options is not None and options.n_seq > 1 else SnapKVContext
