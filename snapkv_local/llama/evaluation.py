"""Prompts, turns and answers through the engine: what a turn is decides which rows are evicted when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local.native.context import Progress  # isort: skip

from snapkv_local.config import SnapKVConfig
from snapkv_local.errors import LongPromptError, PromptError
from snapkv_local.llama.decoding import DecodingLlama
from snapkv_local.llama.turn import Standing, Turn, decide, n_again, n_common
from snapkv_local.native import states
from snapkv_local.prompt.marks import Marks
from snapkv_local.stats import PrefillStats


class EvaluatingLlama(DecodingLlama):
    """What Llama does with tokens.

    Attributes:
        snapkv: how to compress; None for the full cache.
        keep_queries, keep_scores, maps_files, n_parallel: as Llama has them.
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
    n_parallel: int
    last_prefill: PrefillStats | None
    evictions: list[PrefillStats]
    n_prompt: int
    n_cached: int
    _is_prompt: bool
    _marks: Marks
    _follows: bool = False  # the tokens that come next are those of another model's answer

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
        self._context("prefill")
        if len(tokens) == 0:
            raise PromptError("prompt", "is empty", "give at least one token")
        if len(tokens) > self._n_ctx:
            raise LongPromptError(
                f"prompt of {len(tokens)} tokens",
                f"is longer than the context of {self._n_ctx}",
                len(tokens),
                self._n_ctx,
            )
        self.n_prompt = len(tokens)
        self.last_prefill, self.evictions = None, []
        self.last_prefill = self._prefill(tokens, progress or self.prefill_progress)
        self.n_cached = self.last_prefill.n_cached
        return self.last_prefill

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluate tokens from the current position.

        A prompt at position 0 that is to be compressed goes to prefill(). Where the tokens do not
        fit the free cells, rows are evicted again: the new tokens vote, and all rows compete, those
        kept from the prompt and those of later tokens. With a vault, every turn of more than one token
        does, so that it chooses its own rows; only what is new is evaluated.

        Raises:
            ConfigError: made with vocab_only.
            NoRoomError: within generate(), after its first token.
            PromptError: more than n_ctx tokens in all.
        """
        self._check_weights("eval")
        if self._is_prompt:
            # where it goes on from here; prefill() and evictions know better
            self._is_prompt, self.n_cached = False, self.n_tokens
        if self._generating and self.draft_model is not None:
            tokens = tokens[: self._n_looked_at()]  # whose logits are there together
        if self.snapkv is None:
            self._eval_full(tokens)
            return
        tokens = list(tokens)
        standing = self._standing(tokens)
        if self._generating and self.draft_model is not None and standing.n_free:
            # rows are evicted where they are without drafts, when there is no cell for a token
            tokens = tokens[: standing.n_free]
            standing = replace(standing, n_new=len(tokens))
        turn = decide(self.snapkv, standing)
        if self.n_tokens == 0:
            self.last_prefill, self.evictions = None, []
        context = self._context("eval")
        is_turn = len(tokens) > 1 and not self._generating and not self._follows
        begins_turn = is_turn and turn is Turn.DECODE and self.n_tokens > 0
        if begins_turn or self._votes_from_here(standing):
            context.keep_state(with_logits=False)
        match turn:
            case Turn.DECODE:
                self._go_on(tokens)
            case Turn.PREFILL:
                self._prefill_all(tokens)
            case Turn.EXTEND:
                self._catch_up()
                self._extend_or_prefill(tokens)
            case Turn.EVICT | Turn.CHOOSE | Turn.FULL:
                self._make_room(turn)
                self._go_on(self._fitting(tokens))
        if is_turn or (self._follows and turn is not Turn.DECODE):
            context.keep_state(with_logits=True)

    def set_snapkv(self, config: SnapKVConfig) -> None:
        """Compress later prompts in another way. What the context holds is dropped.

        Raises:
            ConfigError: made without snapkv, or the settings need more cells than the cache has.
        """
        context = self._context("set_snapkv")
        context.set_config(replace(context.options, config=config))
        self.snapkv = config
        self.reset()

    def _standing(self, tokens: list[int]) -> Standing:
        """Where the conversation stands when these tokens come; what followed it in the cache is removed."""
        goes_on = (self._generating or self._same_window(tokens)) and self._trim()
        n_free = self.n_free() if goes_on else None
        fits = n_free is not None and len(tokens) <= n_free
        again = self._n_again(0 if self._generating else len(tokens))
        return Standing(
            n_new=len(tokens),
            n_tokens=self.n_tokens,
            n_ctx=self._n_ctx,
            n_free=n_free,
            is_answer=self._generating,
            goes_back=fits or again == 0 or self._begin_of(again) is not None,
        )

    def _n_again(self, n_new: int) -> int:
        assert self.snapkv is not None
        return n_again(self.snapkv, n_new)

    def _return_to_turn(self, tokens: Sequence[int]) -> None:
        """Go back to the last place that a prompt has in common with the conversation.

        That is for models with recurrent layers, which have a few such places, where turns begin and
        end. Others go back to any token. Where there is none, the prompt is evaluated anew.
        """
        if self.snapkv is None or not self._is_hybrid or self.n_tokens == 0:
            return
        n_same = n_common(self._input_ids, np.asarray(tokens, np.int32))
        context = self._context("generate")
        # at the prompt's end there is no token left to get logits from
        places = [
            state
            for state in states.kept(context)
            if state.pos <= n_same and (state.pos < len(tokens) or state.logits.size)
        ]
        if n_same == self.n_tokens or not places or not context.go_back(places[-1].pos):
            return
        self.n_tokens, self._requires_eval = places[-1].pos, places[-1].logits.size == 0
        if self._logits_all and not self._requires_eval:
            self._store_logits(self.n_tokens - 1, 1)

    def _begin_of(self, n: int) -> int | None:
        """Where the last n tokens, or more, can be evaluated again from; None if nowhere."""
        start = self.n_tokens - n
        return self._context("eval").state_before(start) if self._is_hybrid else start

    def _votes_from_here(self, at: Standing) -> bool:
        """True within an answer where its last tokens will vote from when the cells run out.

        Recurrent layers must have their state kept by then.
        """
        if not self._is_hybrid or not at.is_answer or at.n_free is None:
            return False
        assert self.snapkv is not None
        # twice as many tokens as vote: several may be decoded at once, and those that find no cells count not
        least = 2 * self.snapkv.window_size
        return at.n_free - at.n_new < least <= at.n_free

    def _same_window(self, tokens: list[int]) -> bool:
        """False if tokens replace a part of the window that has voted by another text."""
        start, end = self.n_tokens, self._context("eval").n_compacted()
        return (
            start == 0
            or start >= end
            or self.input_ids[start:end].tolist() == tokens[: end - start]
        )

    def _fitting(self, tokens: list[int]) -> list[int]:
        """Tokens that the free cells take; those left out are drafts, guesses that need not be checked.

        Raises:
            NoRoomError: they take none, or some are no drafts.
        """
        n_free = self.n_free()
        if n_free == 0 or (len(tokens) > n_free and self.draft_model is None):
            raise self._no_room(f"{len(tokens)} tokens at position {self.n_tokens}", n_free)
        return tokens[:n_free]

    def _make_room(self, turn: Turn) -> None:
        """Evict within an answer, as far as its turn says that anything can be."""
        stats = None
        if turn is Turn.EVICT:
            stats = self._extend(self._go_back_by(self._n_again(0)), [])
        # recurrent layers have gone back by now, to a place where the engine cannot go on
        if turn is Turn.CHOOSE or (turn is Turn.EVICT and stats is None and self._is_hybrid):
            stats = self._prefill(self._input_ids.tolist(), self.prefill_progress)
        if stats is not None:
            self.evictions.append(stats)

    def _extend_or_prefill(self, tokens: list[int]) -> None:
        """Evaluate a turn's tokens and evict; the whole conversation where the engine cannot go on."""
        start = self._go_back_by(self._n_again(len(tokens)))
        stats = self._extend(start, tokens, self.prefill_progress)
        if stats is None:
            self._prefill_all(tokens)
            return
        self.last_prefill, self.evictions = stats, []
        self.n_cached = min(self.n_cached, start)

    def _prefill_all(self, tokens: list[int]) -> None:
        """A prompt of the conversation so far and these tokens."""
        self.prefill([*self._input_ids.tolist(), *tokens])

    def _go_back_by(self, n: int) -> int:
        """Where the last n tokens, or more, are evaluated again from; recurrent layers are there then."""
        start = self.n_tokens if n == 0 else self._begin_of(n)
        assert start is not None  # else it were another turn
        if n > 0:
            self._context("eval").go_back(start)
        return start

    def _extend(
        self, start: int, tokens: list[int], progress: Progress | None = None
    ) -> PrefillStats | None:
        """Evaluate what is there from a position on, and tokens, and evict down to the budget.

        Returns:
            None if the engine cannot go on there.
        """
        context, n_tokens = self._context("eval"), self.n_tokens
        whole = np.array([*self._input_ids.tolist(), *tokens], np.int32)
        parts = self._marks.of(self, self.snapkv, whole)
        self.n_tokens, self._requires_eval = 0, True  # where it fails, the context is empty
        stats = context.extend(start, whole[start:], self._checking(progress), parts)
        self.n_tokens, self._requires_eval = n_tokens, False
        if stats is not None:
            self._note(start, whole[start:], 1)
        return stats

    def _prefill(self, tokens: Sequence[int], progress: Progress | None) -> PrefillStats:
        """Evaluate a prompt in the place of what the context held; its figures stay the last prompt's."""
        prompt = np.asarray(tokens, dtype=np.int32)
        self.n_tokens, self._requires_eval = 0, True  # where it fails, the context is empty
        self._check_model()
        self._attach(prompt)
        parts = self._marks.of(self, self.snapkv, prompt)
        stats = self._context("prefill").prefill(prompt, self._checking(progress), parts)
        self._note(0, prompt, 1)
        return stats

    def _attach(self, prompt: npt.NDArray[np.int32]) -> None:
        """Called before a prompt is evaluated: what the vault may begin with."""
