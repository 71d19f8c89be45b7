"""One sequence of a native context: what it holds, and how it goes back."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local.native import api, failure, structs  # isort: skip

from llama_cpp import _internals, llama_cpp

from snapkv_local.native.checked import CheckedContext
from snapkv_local.native.kept_rows import KeptRows, pointer


class SequenceContext(KeptRows, CheckedContext):
    """A native context in the eyes of one of its sequences.

    Attributes:
        seq_id: of the sequence that all methods speak of; 0 in a context that was just made.
        is_hybrid: the model has recurrent layers beside those with attention.
    """

    seq_id: int = 0
    is_hybrid: bool
    _look: int = 0  # position before which the states that are put aside are; 0: none are

    def decode(self, batch: _internals.LlamaBatch) -> None:
        """Evaluate tokens of this sequence, whichever the batch says: llama_cpp knows the first one only.

        Raises:
            OutOfMemoryError, NativeError: what the sequence holds is then unknown.
        """
        for i in range(batch.batch.n_tokens):
            batch.batch.seq_id[i][0] = self.seq_id
        super().decode(batch)

    def n_ctx(self) -> int:
        """Tokens that the sequence may have."""
        return int(llama_cpp.llama_n_ctx_seq(self.ctx))

    def state_size(self) -> int:
        """Bytes of the sequence's saved state."""
        return int(llama_cpp.llama_state_seq_get_size(self.ctx, self.seq_id))

    def kv_cache_seq_rm(self, seq_id: int, p0: int, p1: int) -> bool:
        """As llama_cpp's. A negative seq_id is this sequence: recurrent layers know no other such.

        These go back to p0 if their state was kept there; while guesses are looked at, to where these
        began, so that tokens before p0 are `behind`.
        """
        seq_id = self.seq_id if seq_id < 0 else seq_id
        if super().kv_cache_seq_rm(seq_id, p0, p1):
            if seq_id == self.seq_id:
                self.behind = max(0, min(self.behind, p0 - self._end())) if self.behind else 0
                self._look = self._look if p0 >= self._look else 0
            return True
        is_end = seq_id == self.seq_id and p1 < 0 < p0
        return is_end and (self.go_back(p0) or (self._look > 0 and self._take_back(p0)))

    def reserve_looks(self) -> None:
        """Take the memory that begin_look() needs, for all sequences.

        Raises:
            OutOfMemoryError: there is none.
        """
        if self.is_hybrid and not api.llama_snapkv_reserve_looks(self.ctx):
            failure.fail("drafts")

    def begin_look(self) -> None:
        """Guesses come next: what recurrent layers hold is put aside, so that wrong ones can be removed.

        Raises:
            OutOfMemoryError: the conversation is as it was.
        """
        if not self.is_hybrid:
            return
        if not api.llama_snapkv_begin_look(self.ctx, self.seq_id):
            failure.fail("the state before guesses")
        self._look = self._end()

    def end_looks(self) -> None:
        """No guesses come any more."""
        self._look = 0

    def _take_back(self, pos: int) -> bool:
        begin = int(api.llama_snapkv_take_back(self.ctx, self.seq_id, pos))
        if begin < 0:
            self.behind = self._look = 0
            return False
        self.behind = pos - begin
        return True

    def keep_state(self, with_logits: bool) -> None:
        """Keep the state of recurrent layers behind the last token, unless it is; for other models, nothing.

        Args:
            with_logits: the context's are those of this token.

        Raises:
            OutOfMemoryError: the conversation is as it was.
        """
        if not self.is_hybrid or self.state_before(self._end()) == self._end():
            return
        if not api.llama_snapkv_keep_state(self.ctx, self.seq_id, with_logits):
            failure.fail("the state of a turn's end")

    def state_before(self, pos: int) -> int | None:
        """The last position, up to pos, at which a state of recurrent layers is kept; None: nowhere."""
        found, raw = None, structs.llama_snapkv_state()
        for i in range(api.llama_snapkv_n_states(self.ctx, self.seq_id, False)):
            api.llama_snapkv_get_state(self.ctx, self.seq_id, False, i, ctypes.byref(raw))
            if raw.pos <= pos:
                found = int(raw.pos)
        return found

    def go_back(self, pos: int) -> bool:
        """Remove what follows a kept state of recurrent layers; False if none is kept at the position.

        The context's logits are then those of the last token, if the state has them.
        """
        if not self.is_hybrid:
            return False
        found = bool(api.llama_snapkv_go_back(self.ctx, self.seq_id, pos))
        if found:
            self.behind, self._look = 0, self._look if pos >= self._look else 0
        return found

    def _end(self) -> int:
        return int(llama_cpp.llama_memory_seq_pos_max(self.memory, self.seq_id)) + 1

    def trim(self, n_past: int) -> bool:
        """Remove what follows the first n_past positions; False if generation cannot go on there.

        That is in the compacted part, where cells belong to no single position, further back than
        the cache of sliding-window layers reaches, and in a model with recurrent layers anywhere
        before the last token but where their state was kept.
        """
        if not self.kv_cache_seq_rm(-1, n_past, -1):
            return False
        # a batch of others that failed while it was computed may have taken what this sequence had
        if self._end() < n_past - self.behind:
            return False
        n_swa = llama_cpp.llama_model_n_swa(self.model.model)
        if n_swa == 0 or n_past == 0:
            return True
        return bool(0 <= self.info().pos_swa <= max(0, n_past - n_swa))

    def n_free(self) -> int:
        """Free cells of the KV cache."""
        return int(self.info().n_free)

    def n_compacted(self) -> int:
        """Tokens of the prompt that was compressed, 0 if none was."""
        info = self.info()
        return int(info.n_prompt) if info.compacted else 0

    def set_logits(self, values: npt.NDArray[np.float32]) -> None:
        """The logits are those of the last token of a state that was read, [n_vocab]."""
        row = np.ascontiguousarray(values, np.float32)
        if not api.llama_snapkv_set_logits(self.ctx, pointer(row, ctypes.c_float)):
            failure.fail("llama_snapkv_set_logits")
