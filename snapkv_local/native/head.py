"""The context of a model's own prediction head (MTP, NextN), which guesses what follows."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local.native import api  # isort: skip

from llama_cpp import _internals, llama_cpp

from snapkv_local import foreign
from snapkv_local.config import HEAD_CELLS
from snapkv_local.errors import UnsupportedModelError
from snapkv_local.native import failure, voices
from snapkv_local.native.checked import CheckedContext

N_BATCH = 32  # tokens evaluated at once, at most
# whose graphs of a head have been run here with compact caches; others may have none
ARCHITECTURES = ("glm4moe", "qwen35", "qwen35moe")

Hidden = npt.NDArray[np.float32]


def check_heads(model: _internals.LlamaModel) -> None:
    """Look whether a model that was loaded with its heads has one that can guess.

    Raises:
        UnsupportedModelError: it has none, or one of an architecture that was never run.
    """
    arch = model.metadata().get("general.architecture", "")
    reason = None
    if llama_cpp.llama_model_n_layer_nextn(model.model) == 0:
        reason = "has no prediction heads (MTP)"
    elif arch not in ARCHITECTURES:
        reason = f"is of {arch}, and only heads of {', '.join(ARCHITECTURES)} have been run"
    if reason is not None:
        raise UnsupportedModelError(
            model.path_model, reason, "guess with --lookup or a smaller model"
        )


class HeadContext(CheckedContext):
    """The prediction head of a loaded model, with a cache of its own for each conversation.

    The head is one layer. It takes a token, and the hidden state that the model had behind the token
    before it, and gives logits of the next one and a hidden state that the head may go on from.

    Args:
        model: loaded with its heads (load_mtp).
        params: of the model's context.
        n_seq: conversations.

    Raises:
        OutOfMemoryError, NativeError: llama.cpp could not make it.
    """

    def __init__(
        self,
        model: _internals.LlamaModel,
        params: llama_cpp.llama_context_params,
        n_seq: int,
        verbose: bool,
    ) -> None:
        own = type(params).from_buffer_copy(params)
        own.ctx_type = llama_cpp.LLAMA_CONTEXT_TYPE_MTP
        own.n_ctx, own.n_seq_max, own.kv_unified = n_seq * HEAD_CELLS, n_seq, False
        own.n_batch = own.n_ubatch = N_BATCH
        own.n_outputs_max = n_seq  # of which each step has one
        with voices.heard(silent=not verbose) as said:
            try:
                super().__init__(model=model, params=own, verbose=verbose)
            except ValueError as e:
                raise foreign.from_load(e, model.path_model, said.reason) from e
        api.llama_snapkv_keep_hidden(self.ctx, True)
        self._lock = threading.Lock()
        self._n_embd = int(model.n_embd())
        self._n_vocab = int(model.n_vocab())

    def step(
        self, seq_id: int, pos: int, tokens: Sequence[int], hidden: Hidden
    ) -> tuple[npt.NDArray[np.float32], Hidden]:
        """Evaluate tokens of a conversation, in the place of what the head has there and later.

        Args:
            pos: of the first token. If the head lacks tokens right before it, it forgets the others.
            tokens: [n], up to N_BATCH.
            hidden: [n, n_embd], behind the token before each.

        Returns:
            Logits of what follows, [n_vocab], and the hidden state there, [n_embd].

        Raises:
            OutOfMemoryError, NativeError: what the head knows of this conversation is then gone.
        """
        n = len(tokens)
        rows = np.ascontiguousarray(hidden, np.float32)
        own_id: Any = (ctypes.c_int32 * 1)(seq_id)
        batch = llama_cpp.llama_batch(
            n_tokens=n,
            token=(ctypes.c_int32 * n)(*tokens),
            embd=rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
            pos=(ctypes.c_int32 * n)(*range(pos, pos + n)),
            n_seq_id=(ctypes.c_int32 * n)(*[1] * n),
            seq_id=(ctypes.POINTER(ctypes.c_int32) * n)(*[own_id] * n),
            logits=(ctypes.c_int8 * n)(*[0] * (n - 1), 1),
        )
        with self._lock:
            self._make_room(seq_id, pos, n)
            with voices.heard(silent=not self.verbose) as said:
                rc = api.llama_snapkv_decode(self.ctx, batch)
            if rc != 0:
                llama_cpp.llama_memory_seq_rm(self.memory, seq_id, -1, -1)
                failure.fail("a guess of the prediction head", said.reason)
            logits = np.ctypeslib.as_array(self.get_logits_ith(-1), (self._n_vocab,)).copy()
            state = np.ctypeslib.as_array(api.llama_snapkv_hidden(self.ctx, -1), (self._n_embd,))
            return logits, state.copy()

    def forget(self, seq_id: int) -> None:
        """Another conversation follows in a sequence."""
        with self._lock:
            if self.ctx is not None:
                llama_cpp.llama_memory_seq_rm(self.memory, seq_id, -1, -1)

    def _make_room(self, seq_id: int, pos: int, n: int) -> None:
        end = llama_cpp.llama_memory_seq_pos_max(self.memory, seq_id) + 1
        llama_cpp.llama_memory_seq_rm(self.memory, seq_id, pos if end >= pos else -1, -1)
        begin = llama_cpp.llama_memory_seq_pos_min(self.memory, seq_id)
        if begin >= 0 and pos + n - begin > HEAD_CELLS:
            # more than one goes, so that most steps remove nothing
            llama_cpp.llama_memory_seq_rm(self.memory, seq_id, 0, pos + n - HEAD_CELLS * 3 // 4)
