"""A llama_cpp context that says why it fails, and does not end the process where memory runs out."""

from __future__ import annotations

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local.native import api  # isort: skip

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
from llama_cpp import _internals, llama_cpp

from snapkv_local.native import failure, support, voices


class CheckedContext(_internals.LlamaContext):
    """llama_cpp's context with the full cache.

    Attributes:
        gate: entered by whoever uses what several threads use.
        seq_id: of its only sequence.
        behind: last tokens that were removed together with guesses behind them, and are to be evaluated
            again before others.
        keeps_hidden: the next batch keeps hidden states, which hidden() has then.

    Raises:
        UnsupportedModelError: llama.cpp would end the process.
    """

    seq_id: int = 0
    behind: int = 0
    keeps_hidden: bool = False
    gate: AbstractContextManager[Any] = nullcontext()

    def __init__(
        self,
        *,
        model: _internals.LlamaModel,
        params: llama_cpp.llama_context_params,
        verbose: bool = True,
    ) -> None:
        self._exit_stack = ExitStack()  # to close where it is not made
        support.check_layers(model.path_model, model.model)
        super().__init__(model=model, params=params, verbose=verbose)

    def decode(self, batch: _internals.LlamaBatch) -> None:
        """Evaluate a batch.

        Raises:
            OutOfMemoryError, NativeError: what the context holds is then unknown.
        """
        self._compute(batch, self.keeps_hidden)

    def _compute(self, batch: _internals.LlamaBatch, keeps_hidden: bool) -> None:
        with voices.heard(silent=not self.verbose) as said:
            api.llama_snapkv_keep_hidden(self.ctx, keeps_hidden)
            rc = api.llama_snapkv_decode(self.ctx, batch.batch)
        if rc != 0:
            failure.fail("a batch of tokens", said.reason)

    def logits(self, n: int) -> npt.NDArray[np.float32]:
        """Of the last batch, whose last n tokens have some, [n, n_vocab]; valid until the next."""
        found = self.get_logits()  # type: ignore[no-untyped-call]
        return np.ctypeslib.as_array(found, shape=(n, self.model.n_vocab()))

    def hidden(self, n: int) -> npt.NDArray[np.float32]:
        """Behind the last n tokens that have logits, [n, n_embd]."""
        return np.stack([self._hidden_at(i - n) for i in range(n)])

    def _hidden_at(self, i: int) -> npt.NDArray[np.float32]:
        found = api.llama_snapkv_hidden(self.ctx, i)
        return np.ctypeslib.as_array(found, shape=(self.model.n_embd(),))
