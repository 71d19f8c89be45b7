"""One step of several sequences that decode at once: a token of each, in one batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# first of all: it loads our library, which llama_cpp then uses
import snapkv_local.native.api  # isort: skip  # noqa: F401

from llama_cpp import _internals

from snapkv_local.errors import SnapKVError
from snapkv_local.native.gate import Gate

# seconds that a step waits for a sequence that took part in the last one, and no longer than that took
_PATIENCE = 0.05


@dataclass(eq=False)
class _Step:
    seq_id: int
    token: int
    pos: int
    row: npt.NDArray[np.float32] | None = None
    error: Exception | None = None

    @property
    def is_done(self) -> bool:
        return self.row is not None or self.error is not None


class Steps:
    """Gathers the steps of sequences, each from a thread of its own.

    A step is computed when all sequences that took part in the one before have handed in theirs. One
    that lets the others wait for longer than a step takes is left out until it comes again. A sequence
    that decodes alone waits for nobody, and is computed as in a context of its own.

    Args:
        gate: of the native context.
        n_seq: sequences of the context.
        decode: evaluates a batch of the context.
        logits: those of a batch's i-th token, [n_vocab] in memory of the context.
    """

    def __init__(
        self,
        gate: Gate,
        n_seq: int,
        decode: Callable[[_internals.LlamaBatch], None],
        logits: Callable[[int], npt.NDArray[np.float32]],
    ) -> None:
        self.gate = gate
        self._decode = decode
        self._logits = logits
        self._batch = _internals.LlamaBatch(n_tokens=n_seq, embd=0, n_seq_max=1, verbose=False)
        self._waiting: list[_Step] = []

    def compute(
        self, seq_id: int, token: int, pos: int, remove: Callable[[int, int], bool]
    ) -> npt.NDArray[np.float32]:
        """Evaluate a token of a sequence.

        Args:
            remove: takes away what a sequence has from a position on, where a batch has failed; False
                if it cannot.

        Returns:
            Its logits, [n_vocab].

        Raises:
            OutOfMemoryError, NativeError: of this sequence; the others' steps are not concerned.
        """
        step = _Step(seq_id, token, pos)
        with self.gate:
            self._waiting.append(step)
            try:
                self.gate.notify()
                patience = min(_PATIENCE, self.gate.seconds_step)
                self.gate.wait(lambda: step.is_done or self._all_are_here(), patience)
                if not step.is_done:
                    self._compute(remove)
            finally:
                if step in self._waiting:
                    self._waiting.remove(step)
        if step.error is not None:
            raise step.error
        assert step.row is not None
        return step.row

    def leave(self, seq_id: int) -> None:
        """The sequence's answer has ended, or it goes on with a prompt: nobody waits for it."""
        with self.gate:
            if seq_id in self.gate.decoding:
                self.gate.decoding.discard(seq_id)
                self.gate.notify()

    def _all_are_here(self) -> bool:
        return self.gate.decoding <= {step.seq_id for step in self._waiting}

    def _compute(self, remove: Callable[[int, int], bool]) -> None:
        # in the sequences' order, which llama.cpp puts into one ubatch
        steps = sorted(self._waiting, key=lambda step: step.seq_id)
        self._waiting.clear()
        began = time.monotonic()
        try:
            self._together(steps)
        except SnapKVError as e:
            if len(steps) == 1:
                steps[0].error = e
            else:
                self._one_by_one(steps, remove, e)
        self.gate.seconds_step = time.monotonic() - began
        self.gate.n_steps += 1
        self.gate.decoding = {step.seq_id for step in steps if step.error is None}
        self.gate.notify()

    def _one_by_one(
        self, steps: list[_Step], remove: Callable[[int, int], bool], error: SnapKVError
    ) -> None:
        """After a batch has failed, of which a part may have been computed."""
        for step in steps:
            if not remove(step.seq_id, step.pos):  # recurrent layers may have gone on
                step.error = error
        for step in steps:
            if step.error is None:
                try:
                    self._together([step])
                except SnapKVError as e:
                    step.error = e

    def _together(self, steps: list[_Step]) -> None:
        raw: Any = self._batch.batch
        raw.n_tokens = len(steps)
        for i, step in enumerate(steps):
            raw.token[i], raw.pos[i] = step.token, step.pos
            raw.seq_id[i][0], raw.n_seq_id[i] = step.seq_id, 1
            raw.logits[i] = True
        self._decode(self._batch)
        for i, step in enumerate(steps):
            step.row = self._logits(i).copy()

    def close(self) -> None:
        """Free the batch."""
        self._batch.close()
