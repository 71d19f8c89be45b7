"""Prompts and tokens through the engine: prefill, decode, and evictions when the cells run out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local.native.context import ContextOptions, Progress, SnapKVContext  # isort: skip

import llama_cpp

from snapkv_local.config import SnapKVConfig
from snapkv_local.errors import ConfigError, NoRoomError, PromptError
from snapkv_local.llama.file_checks import FileChecks
from snapkv_local.prompt.marks import Marks
from snapkv_local.stats import PrefillStats


class EvaluatingLlama(FileChecks, llama_cpp.Llama):
    """What Llama does with tokens.

    Attributes:
        snapkv: how to compress; None for the full cache.
        keep_queries, keep_scores, maps_files: as Llama has them.
        prefill_progress: called with (done, total) while a prompt is evaluated.
        last_prefill: of the last prompt or turn; None if nothing was evicted.
        evictions: of the answer since then.
        n_prompt: tokens of the last prompt.
        n_cached: of these at its start, whose K and V were there when generate() began: in the
            cache, in the vault, or in a document's file.
    """

    snapkv: SnapKVConfig | None
    keep_queries: int
    keep_scores: bool
    maps_files: bool
    prefill_progress: Progress | None
    last_prefill: PrefillStats | None
    evictions: list[PrefillStats]
    n_prompt: int
    n_cached: int
    _is_prompt: bool
    _generating: bool
    _marks: Marks

    def prefill(self, tokens: Sequence[int], progress: Progress | None = None) -> PrefillStats:
        """Evaluate a prompt from position 0, replacing what the context held.

        generate() and sample() go on from it. With logits_all=True, scores gets the last token's
        row only: nothing else of a compressed prompt has logits, and logprobs of generated tokens
        need no other.

        Args:
            tokens: [n_prompt]; compressed if the configuration keeps fewer rows.
            progress: instead of prefill_progress for this call.

        Raises:
            ConfigError: made without snapkv, or policy or budget do not fit the prompt.
            PromptError: no tokens, or more than n_ctx.
            NoRoomError, OutOfMemoryError, NativeError: from the engine. After these, after Ctrl-C,
                and after whatever progress or a policy raises, the context is empty and usable.
        """
        context = self._context("prefill")
        prompt = np.asarray(tokens, dtype=np.int32)
        if len(prompt) == 0:
            raise PromptError("prompt", "is empty", "give at least one token")
        if len(prompt) > self._n_ctx:
            raise PromptError(
                f"prompt of {len(prompt)} tokens",
                f"is longer than the context of {self._n_ctx}",
                "raise {n_ctx} or shorten the prompt",
            )
        self.n_tokens = 0
        self._requires_eval = True
        self.last_prefill = None
        self.n_prompt = len(prompt)
        self.evictions = []
        self._check_model()
        self._attach(prompt)
        parts = self._marks.of(self, self.snapkv, prompt)
        report = self._checking(progress or self.prefill_progress)
        self.last_prefill = context.prefill(prompt, report, parts)
        self.input_ids[: len(prompt)] = prompt
        if self._logits_all:
            self._store_logits(len(prompt) - 1, 1)
        self.n_tokens = len(prompt)
        self._requires_eval = False
        self.n_cached = self.last_prefill.n_cached
        return self.last_prefill

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluate tokens from the current position.

        A prompt at position 0 that is to be compressed goes to prefill(). Where the tokens do not
        fit the free cells, rows are evicted again: the new tokens vote, and all rows compete, those
        kept from the prompt and those of later tokens. With a vault,
        every turn of more than one token does, so that it chooses its own rows; only what is new is
        evaluated.

        Raises:
            ConfigError: made with vocab_only.
            NoRoomError: within generate(), after its first token.
            PromptError: more than n_ctx tokens in all.
        """
        self._check_weights("eval")
        if self._is_prompt:
            # where it goes on from here; prefill() and evictions know better
            self._is_prompt, self.n_cached = False, self.n_tokens
        if self.snapkv is None:
            self._eval_full(tokens)
            return
        context = self._context("eval")
        tokens = list(tokens)
        if self.n_tokens == 0:
            self.last_prefill = None
            self.evictions = []
            if self.snapkv.n_kept(len(tokens)) < len(tokens):
                self.prefill(tokens)
                return
        if self.snapkv.vault != "off" and not self._generating and len(tokens) > 1:
            self.prefill([*self._input_ids.tolist(), *tokens])
            return
        goes_on = self._generating or self._same_window(context, tokens)
        goes_on = goes_on and self._trim()
        n_free = self._n_free() if goes_on else 0
        if len(tokens) > n_free:
            if not self._generating:
                n_again = max(0, self.snapkv.window_size - len(tokens))  # of the window before
                if goes_on and (stats := self._extend(tokens, self.prefill_progress)):
                    self.last_prefill, self.evictions = stats, []
                    self.n_cached -= n_again
                else:
                    self.prefill([*self._input_ids.tolist(), *tokens])
                return
            self._make_room()
            n_free = self._n_free()
            if n_free == 0 or (len(tokens) > n_free and self.draft_model is None):
                raise self._no_room(f"{len(tokens)} tokens at position {self.n_tokens}", n_free)
            tokens = tokens[:n_free]  # the rest are drafts: guesses that need not be checked
        start, report = self.n_tokens, None if self._generating else self.prefill_progress
        for _ in self._decode(tokens, 1):
            if report is not None and len(tokens) > 1:
                report(self.n_tokens - start, len(tokens))

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
                "lies in the compacted prompt, or so far back that sliding windows are gone",
                "prefill the prompt again",
            )
        n_free = self._n_free()
        if len(tokens) > n_free:
            raise self._no_room(f"{len(tokens)} tokens to score", n_free)
        n = len(tokens) if last is None else min(last, len(tokens))
        # each batch's logits are where the one before had its own
        rows = [chunk.copy() for chunk in self._decode(list(tokens), n)]
        found = np.concatenate([np.empty((0, self._n_vocab), np.float32), *rows])
        return found[len(found) - n :]

    def set_snapkv(self, config: SnapKVConfig) -> None:
        """Compress later prompts in another way. What the context holds is dropped.

        Raises:
            ConfigError: made without snapkv, or the settings need more cells than the cache has.
        """
        options = ContextOptions(config, self.keep_scores, self.keep_queries)
        self._context("set_snapkv").set_config(options)
        self.snapkv = config
        self.reset()  # type: ignore[no-untyped-call]

    def bytes_of_sequence(self) -> int:
        """Bytes that the conversation takes of the KV cache, by the size of its saved state."""
        return int(llama_cpp.llama_state_seq_get_size(self.ctx, 0))

    def n_ctx(self) -> int:
        """Tokens that a conversation may have: n_ctx as it was asked for, or the model's.

        llama.cpp rounds it up, while llama_cpp holds no token beyond it.
        """
        return min(super().n_ctx(), int(self.context_params.n_ctx))

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

    def _attach(self, prompt: npt.NDArray[np.int32]) -> None:
        """Called before a prompt is evaluated: what the vault may begin with."""

    def _same_window(self, context: SnapKVContext, tokens: list[int]) -> bool:
        """False if tokens replace a part of the window that has voted by another text."""
        start, end = self.n_tokens, context.n_compacted()
        return (
            start == 0
            or start >= end
            or self.input_ids[start:end].tolist() == tokens[: end - start]
        )

    def _n_free(self) -> int:
        """Tokens that can still be evaluated: by cells, and by positions of the context."""
        n_left = self._n_ctx - self.n_tokens
        return min(n_left, self._ctx.n_free()) if isinstance(self._ctx, SnapKVContext) else n_left

    def _trim(self) -> bool:
        """Remove what follows n_tokens; False if nothing can be evaluated there."""
        if isinstance(self._ctx, SnapKVContext):
            return self._ctx.trim(self.n_tokens)
        return bool(self._ctx.kv_cache_seq_rm(-1, self.n_tokens, -1))

    def _extend(self, tokens: list[int], progress: Progress | None = None) -> PrefillStats | None:
        """Evaluate tokens and evict down to the budget; None if the engine cannot go on here."""
        assert self.snapkv is not None
        if self.snapkv.chooser() is not None:
            return None  # it chooses from whole prompts
        n_back = max(0, self.snapkv.window_size - len(tokens))
        start, end = self.n_tokens - n_back, self.n_tokens + len(tokens)
        if start <= 0 or end > self._n_ctx:
            return None
        given = np.array([*self._input_ids[start:].tolist(), *tokens], np.int32)
        n_tokens = self.n_tokens
        whole = np.append(self._input_ids[:start], given)
        parts = self._marks.of(self, self.snapkv, whole)
        self.n_tokens, self._requires_eval = 0, True  # where it fails, the context is empty
        stats = self._context("eval").extend(start, given, self._checking(progress), parts)
        self.n_tokens, self._requires_eval = n_tokens, False
        if stats is None:
            return None
        self.input_ids[start:end] = given
        if self._logits_all:
            self._store_logits(end - 1, 1)
        self.n_tokens = end
        return stats

    def _make_room(self) -> None:
        """Evict again while tokens are generated: the last ones vote."""
        assert self.snapkv is not None
        if self.n_tokens >= self._n_ctx:
            return
        if self.snapkv.vault == "off" and self.snapkv.chooser() is None:
            if stats := self._extend([]):
                self.evictions.append(stats)
            return
        n_prompt, n_cached, last = self.n_prompt, self.n_cached, self.last_prefill
        evictions = [*self.evictions]
        stats = self.prefill(self._input_ids.tolist())
        self.n_prompt, self.n_cached, self.last_prefill = n_prompt, n_cached, last
        self.evictions = [*evictions, stats]

    def _no_room(self, what: str, n_free: int) -> NoRoomError:
        if n_free == self._n_ctx - self.n_tokens:
            return NoRoomError(what, f"the context has {n_free} positions left", "raise {n_ctx}")
        return NoRoomError(what, f"the KV cache has {n_free} free cells", "raise {decode_cells}")

    def _eval_full(self, tokens: Sequence[int]) -> None:
        self._check_model()
        if self.prefill_progress is None or len(tokens) <= 1:
            super().eval(tokens)
            return
        # the batches that one call would make, with a report after each
        for start in range(0, len(tokens), self.n_batch):
            self._check_model()
            super().eval(tokens[start : start + self.n_batch])
            self.prefill_progress(min(start + self.n_batch, len(tokens)), len(tokens))

    def _decode(self, tokens: list[int], n_logits: int) -> Iterator[npt.NDArray[np.float32]]:
        """Evaluate tokens in batches; yields logits, [n, n_vocab], valid until the next.

        Args:
            n_logits: last tokens whose logits are wanted. A batch has those of its last one anyway,
                and with logits_all of all.
        """
        for start in range(0, len(tokens), self.n_batch):
            self._check_model()
            batch = tokens[start : start + self.n_batch]
            n_past = self.n_tokens
            wanted = max(1, n_logits - (len(tokens) - start - len(batch)))
            n_rows = len(batch) if self._logits_all else min(wanted, len(batch))
            self._batch.set_batch(batch=batch, n_past=n_past, logits_all=n_rows == len(batch))
            for i in range(len(batch) - n_rows, len(batch)):
                self._batch.batch.logits[i] = True
            self._ctx.decode(self._batch)
            self.input_ids[n_past : n_past + len(batch)] = batch
            if self._logits_all:
                self._store_logits(n_past, len(batch))
            self.n_tokens += len(batch)
            self._requires_eval = False
            yield self._logits(n_rows)

    def _logits(self, n: int) -> npt.NDArray[np.float32]:
        return np.ctypeslib.as_array(self._ctx.get_logits(), shape=(n, self._n_vocab))

    def _store_logits(self, start: int, n: int) -> None:
        # with a draft model, llama_cpp makes scores n_batch rows long and the logits of later
        # positions find no place
        rows = self.scores[start : start + n]
        rows[:] = self._logits(n)[: len(rows)]
