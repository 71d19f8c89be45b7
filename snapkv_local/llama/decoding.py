"""Tokens behind what the cache holds: decoded in batches, and nothing is evicted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local.native.context import Progress, SnapKVContext  # isort: skip

import llama_cpp

from snapkv_local.errors import ConfigError, NoRoomError, SnapKVError
from snapkv_local.llama.file_checks import FileChecks
from snapkv_local.native.shared import SharedContext
from snapkv_local.policies.recall import Recall


class DecodingLlama(FileChecks, llama_cpp.Llama):
    """What Llama does with a cache as it is.

    Attributes:
        prefill_progress: called with (done, total) while a prompt is evaluated.
        n_drafted: guessed tokens that were looked at for the last answer.
        n_looks: batches that had some.
        n_again: tokens that were evaluated again for them: recurrent layers go back to before a look.
    """

    prefill_progress: Progress | None
    n_drafted: int = 0
    n_looks: int = 0
    n_again: int = 0
    _generating: bool  # the tokens that come next are an answer's

    def logits_for(self, tokens: Sequence[int], last: int | None = None) -> npt.NDArray[np.float32]:
        """Logits of given tokens ("teacher forcing") from the current position, which moves on.

        Args:
            tokens: [n].
            last: of so many last tokens, which takes less time; None for all.

        Returns:
            [last, n_vocab]; row i holds the logits after the i-th of these tokens.

        Raises:
            ConfigError: made with vocab_only.
            NoRoomError: more tokens than free cells, or than n_ctx allows.
        """
        self._check_weights("logits_for")
        if not self._trim():
            raise NoRoomError(
                f"position {self.n_tokens}",
                "lies in the compacted prompt, or before what sliding windows and recurrent states hold",
                "prefill the prompt again",
            )
        n_free = self.n_free()
        if len(tokens) > n_free:
            raise self._no_room(f"{len(tokens)} tokens to score", n_free)
        n = len(tokens) if last is None else min(last, len(tokens))
        # each batch's logits are where the one before had its own
        rows = [chunk.copy() for chunk in self._decode(list(tokens), n)]
        found = np.concatenate([np.empty((0, self._n_vocab), np.float32), *rows])
        return found[len(found) - n :]

    @property
    def seq_id(self) -> int:
        """The sequence of the native context that the conversation is in."""
        context: Any = self._ctx  # one of ours
        return int(context.seq_id)

    def bytes_of_sequence(self) -> int:
        """Bytes that the conversation takes of the KV cache, by the size of its saved state."""
        if isinstance(self._ctx, SnapKVContext):
            return self._ctx.state_size()
        return int(llama_cpp.llama_state_seq_get_size(self.ctx, 0))

    def reset(self) -> None:
        """Forget what was evaluated, of this conversation alone."""
        if isinstance(self._ctx, SharedContext):
            self.n_tokens, self._requires_eval = 0, True
            self._ctx.kv_cache_seq_rm(-1, -1, -1)
        else:
            super().reset()  # type: ignore[no-untyped-call]

    def n_ctx(self) -> int:
        """Tokens that a conversation may have: n_ctx as it was asked for, or the model's.

        llama.cpp rounds it up, while llama_cpp holds no token beyond it.
        """
        return min(super().n_ctx(), int(self.context_params.n_ctx))

    def leave_steps(self) -> None:
        """No token of this conversation follows soon: those of others need not wait for it."""
        if isinstance(self._ctx, SharedContext):
            self._ctx.leave()

    def _check_weights(self, function: str) -> None:
        if self.model_params.vocab_only:
            raise ConfigError(
                f"{function}()",
                "only the vocabulary is loaded",
                "load the model without vocab_only",
            )

    def _context(self, function: str) -> SnapKVContext:
        self._check_weights(function)
        if not isinstance(self._ctx, SnapKVContext):
            raise ConfigError(
                f"{function}()",
                "this Llama was made without snapkv",
                "pass snapkv=SnapKVConfig(...)",
            )
        return self._ctx

    def n_free(self) -> int:
        """Tokens that can still be evaluated: by cells, and by positions of the context."""
        n_left = self._n_ctx - self.n_tokens
        if not isinstance(self._ctx, SnapKVContext):
            return n_left
        return min(n_left, self._ctx.n_free() - self._ctx.behind)

    def last_logits(self) -> npt.NDArray[np.float32]:
        """[n_vocab] of the last token, valid until the next one is evaluated."""
        return self._logits_at(self.n_tokens - 1)

    def _trim(self) -> bool:
        """Remove what follows n_tokens; False if nothing can be evaluated there."""
        if isinstance(self._ctx, SnapKVContext):
            return self._ctx.trim(self.n_tokens)
        return bool(self._ctx.kv_cache_seq_rm(-1, self.n_tokens, -1))

    def _no_room(self, what: str, n_free: int) -> NoRoomError:
        if n_free == self._n_ctx - self.n_tokens:
            return NoRoomError(what, f"the context has {n_free} positions left", "raise {n_ctx}")
        return NoRoomError(what, f"the KV cache has {n_free} free cells", "raise {decode_cells}")

    def _eval_full(self, tokens: Sequence[int]) -> None:
        """llama_cpp's own eval(), with checks and progress; of an answer's drafts each has logits."""
        self._check_model()
        if self._generating:
            self._trim()
            self._go_on(list(tokens))
            return
        if self.prefill_progress is None or len(tokens) <= 1:
            super().eval(tokens)
            return
        # the batches that one call would make, with a report after each
        for start in range(0, len(tokens), self.n_batch):
            self._check_model()
            super().eval(tokens[start : start + self.n_batch])
            self.prefill_progress(min(start + self.n_batch, len(tokens)), len(tokens))

    def _go_on(self, tokens: list[int]) -> None:
        """Decode tokens; those of an answer are one that was drawn and drafts, which are all looked at."""
        start, report = self.n_tokens, None if self._generating else self.prefill_progress
        if self._generating and len(tokens) > 1:
            self.n_drafted += len(tokens) - 1
            self.n_looks += 1
            self._begin_look()
        for _ in self._decode(tokens, len(tokens) if self._generating else 1):
            if report is not None and len(tokens) > 1:
                report(self.n_tokens - start, len(tokens))

    def _begin_look(self) -> None:
        """Guesses come next."""
        if isinstance(self._ctx, SnapKVContext):
            self._ctx.begin_look()

    def _n_looked_at(self) -> int:
        """Tokens of an answer that are evaluated together at most, of which all but one are guesses.

        After a wrong guess the next step has none. It evaluates again what was right, and if its guesses
        were wrong, too, that would be evaluated once more.
        """
        return 1 if self._n_behind() else self.n_batch

    def _n_behind(self) -> int:
        context: Any = self._ctx  # one of ours
        return int(context.behind)

    def _catch_up(self) -> None:
        """Evaluate again what was removed with guesses behind it."""
        if self._n_behind():
            for _ in self._decode([], 1):
                pass

    def _end_looks(self) -> None:
        """The answer that had guesses has ended."""
        if isinstance(self._ctx, SnapKVContext):
            # where it fails, the conversation ends before these tokens
            with contextlib.suppress(SnapKVError):
                self._catch_up()
            self._ctx.end_looks()

    def _decode(self, tokens: list[int], n_logits: int) -> Iterator[npt.NDArray[np.float32]]:
        """Evaluate tokens in batches; yields logits, [n, n_vocab], valid until the next.

        Args:
            n_logits: last tokens whose logits are wanted. A batch has those of its last one anyway,
                and with logits_all of all.
        """
        context: Any = self._ctx  # one of ours
        if behind := self._n_behind():
            # of these the context holds nothing
            start = self.n_tokens - behind
            tokens = [*self.input_ids[start : self.n_tokens].tolist(), *tokens]
            self.n_tokens, context.behind = start, 0
            self.n_again += behind
        most = self._most_at_once()
        for start in range(0, len(tokens), most):
            self._check_model()
            batch = tokens[start : start + most]
            n_past = self.n_tokens
            wanted = max(1, n_logits - (len(tokens) - start - len(batch)))
            n_rows = len(batch) if self._logits_all else min(wanted, len(batch))
            self._batch.set_batch(batch=batch, n_past=n_past, logits_all=n_rows == len(batch))
            for i in range(len(batch) - n_rows, len(batch)):
                self._batch.batch.logits[i] = True
            self._compute(n_past + len(batch) - n_rows, n_rows)
            self._note(n_past, batch, n_rows)
            yield self._logits(n_rows)

    def _compute(self, pos: int, n_rows: int) -> None:
        """Evaluate the batch, of which n_rows tokens from a position on have logits."""
        context: Any = self._ctx  # one of ours
        draft: Any = self.draft_model
        # only of an answer: a prompt is computed as it is without drafts
        context.keeps_hidden = self._generating and getattr(draft, "sees_hidden", False)
        try:
            context.decode(self._batch)
            if context.keeps_hidden:
                draft.see(pos, context.hidden(n_rows))
        finally:
            context.keeps_hidden = False

    def _most_at_once(self) -> int:
        """Tokens of a batch: a recall comes between two."""
        context: Any = self._ctx  # one of ours
        config = context.options.config if isinstance(context, SnapKVContext) else None
        if config is None or not config.recall:
            return self.n_batch
        every = Recall.every if config.recall_every == "auto" else config.recall_every
        return min(self.n_batch, every)

    def _note(self, start: int, tokens: Sequence[int] | npt.NDArray[np.int32], n_rows: int) -> None:
        """Tokens have been evaluated from a position on, and the last n_rows have logits."""
        self.input_ids[start : start + len(tokens)] = tokens
        self.n_tokens = start + len(tokens)
        if self._logits_all:
            self._store_logits(self.n_tokens - n_rows, n_rows)
        self._requires_eval = False

    def _logits(self, n: int) -> npt.NDArray[np.float32]:
        context: Any = self._ctx  # one of ours
        found: npt.NDArray[np.float32] = context.logits(n)
        return found

    def _logits_at(self, pos: int) -> npt.NDArray[np.float32]:
        """[n_vocab] behind a token of the last batch, by its position."""
        if isinstance(self._ctx, SharedContext):
            row: npt.NDArray[np.float32] = self._logits(self.n_tokens - pos)[0]
            return row
        found = llama_cpp.llama_get_logits_ith(self.ctx, pos - self.n_tokens)
        return np.ctypeslib.as_array(found, shape=(self._n_vocab,))

    def _store_logits(self, start: int, n: int) -> None:
        self.scores[start : start + n] = self._logits(n)
