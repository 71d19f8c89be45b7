"""One step of several sequences that decode at once: a token of each, and drafts, in one batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
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
# tokens of a sequence in a step
MOST = 17


@dataclass(eq=False)
class Step:
    """What a sequence evaluates.

    Attributes:
        seq_id: of the sequence.
        tokens: up to MOST, and no more than a batch takes.
        pos: of the first one.
        n_rows: last tokens whose logits are wanted.
        keeps_hidden: their hidden states are wanted, too.
        rows: logits, [n_rows, n_vocab], when it is done.
        hidden: [n_rows, n_embd]; None where they are not wanted.
        error: why it has failed.
    """

    seq_id: int
    tokens: Sequence[int]
    pos: int
    n_rows: int
    keeps_hidden: bool = False
    rows: npt.NDArray[np.float32] | None = None
    hidden: npt.NDArray[np.float32] | None = None
    error: Exception | None = None

    @property
    def is_done(self) -> bool:
        return self.rows is not None or self.error is not None


class Steps:
    """Gathers the steps of sequences, each from a thread of its own.

    A step is computed when all sequences that took part in the one before have handed in theirs. One
    that lets the others wait for longer than a step takes is left out until it comes again. A sequence
    that decodes alone waits for nobody, and is computed as in a context of its own.

    Args:
        gate: of the native context.
        n_seq: sequences of the context.
        n_batch: tokens of a batch, at most.
        decode: evaluates a batch of the context; true: it keeps hidden states.
        logits: those of a batch's i-th token, [n_vocab] in memory of the context.
        hidden: in the same way, [n_embd] where the batch keeps hidden states.
        in_runs: sequences share a batch only if their ids follow each other. Of a model with recurrent
            layers, llama.cpp computes others, and such of unlike lengths, one after the other, and a state
            cannot be rewound where a later one fails.
    """

    def __init__(
        self,
        gate: Gate,
        n_seq: int,
        n_batch: int,
        decode: Callable[[_internals.LlamaBatch, bool], None],
        logits: Callable[[int], npt.NDArray[np.float32]],
        hidden: Callable[[int], npt.NDArray[np.float32]],
        in_runs: bool = False,
    ) -> None:
        self.gate = gate
        self._decode = decode
        self._in_runs = in_runs
        self._logits = logits
        self._hidden = hidden
        self._n_batch = min(n_seq * MOST, n_batch)
        self._batch = _internals.LlamaBatch(
            n_tokens=self._n_batch, embd=0, n_seq_max=1, verbose=False
        )
        self._waiting: list[Step] = []

    def compute(self, step: Step, remove: Callable[[int, int], bool]) -> None:
        """Evaluate the next tokens of a sequence.

        Args:
            step: has its results then.
            remove: takes away what a sequence has from a position on, where a batch has failed; False
                if it cannot.

        Raises:
            OutOfMemoryError, NativeError: of this sequence; the others' steps are not concerned.
        """
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
        for batch in self._batches(steps):
            try:
                self._together(batch)
            except SnapKVError as e:
                if len(batch) == 1:
                    batch[0].error = e
                else:
                    self._one_by_one(batch, remove, e)
        self.gate.seconds_step = time.monotonic() - began
        self.gate.n_steps += 1
        self.gate.decoding = {step.seq_id for step in steps if step.error is None}
        self.gate.notify()

    def _batches(self, steps: list[Step]) -> Iterator[list[Step]]:
        batch: list[Step] = []
        for step in steps:
            n_tokens = sum(len(each.tokens) for each in (*batch, step))
            ends_run = self._in_runs and batch and not _is_run(batch[-1], step)
            if n_tokens > self._n_batch or ends_run:
                yield batch
                batch = []
            batch.append(step)
        yield batch

    def _one_by_one(
        self, steps: list[Step], remove: Callable[[int, int], bool], error: SnapKVError
    ) -> None:
        """After a batch has failed, of which a part may have been computed."""
        for step in steps:
            # recurrent layers may have gone on; where nothing was computed, they are put back by now
            if not remove(step.seq_id, step.pos):
                step.error = error
        for step in steps:
            if step.error is None:
                try:
                    self._together([step])
                except SnapKVError as e:
                    step.error = e

    def _together(self, steps: list[Step]) -> None:
        raw: Any = self._batch.batch
        each = [(step, j) for step in steps for j in range(len(step.tokens))]
        raw.n_tokens = len(each)
        for i, (step, j) in enumerate(each):
            raw.token[i], raw.pos[i] = step.tokens[j], step.pos + j
            raw.seq_id[i][0], raw.n_seq_id[i] = step.seq_id, 1
            raw.logits[i] = j >= len(step.tokens) - step.n_rows
        self._decode(self._batch, any(step.keeps_hidden for step in steps))
        end = 0
        for step in steps:
            end += len(step.tokens)
            wanted = range(end - step.n_rows, end)
            step.rows = np.stack([self._logits(i) for i in wanted])
            if step.keeps_hidden:
                step.hidden = np.stack([self._hidden(i) for i in wanted])

    def close(self) -> None:
        """Free the batch."""
        self._batch.close()


def _is_run(one: Step, other: Step) -> bool:
    return one.seq_id + 1 == other.seq_id and len(one.tokens) == len(other.tokens)
