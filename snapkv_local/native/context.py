"""A llama.cpp context with a compact KV cache, in the place of llama_cpp's own."""

from __future__ import annotations

import copy
import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local.native import api, structs, support  # isort: skip

from llama_cpp import _internals, llama_cpp

from snapkv_local.config import SnapKVConfig
from snapkv_local.errors import ConfigError, NoRoomError
from snapkv_local.native import failure, substitute, voices
from snapkv_local.native.checked import CheckedContext
from snapkv_local.native.interrupt import deferred_interrupt
from snapkv_local.native.kept_rows import pointer
from snapkv_local.native.sequence import SequenceContext
from snapkv_local.native.tap import Choice, Tap, callback, choosing
from snapkv_local.prompt.parts import Parts, check
from snapkv_local.stats import PrefillStats

Progress = Callable[[int, int], object]

# what other sequences do between two chunks
Others = Callable[[], object]


@dataclass(frozen=True)
class ContextOptions:
    """What llama_cpp's constructor of contexts has no argument for.

    Attributes:
        config: of prefills.
        keep_scores: for scores().
        n_queries: saved of each prompt, at least.
        n_seq: sequences that the context has cells for; each may have n_ctx tokens.
    """

    config: SnapKVConfig
    keep_scores: bool
    n_queries: int = 0
    n_seq: int = 1

    def __post_init__(self) -> None:
        policy = self.config.chooser()
        if self.keep_scores and policy is not None:
            raise ConfigError(
                "keep_scores=True",
                f"the engine's scores are those of snapkv, and {policy.spec} chooses the rows",
                "leave it out, or choose snapkv",
            )


class SnapKVContext(SequenceContext):
    """Made by llama_snapkv_init_from_model(), with the KV cells that budget and decode_cells ask for.

    An object is one sequence of the native context; of_sequence() has the others. Logits are the
    native context's, of what was evaluated last in any sequence.

    Attributes:
        options: of this sequence's prefills: those of our_contexts(), or that set_config() has put in
            their place.
        tap: of prefills whose rows no policy chooses, for measurements; None for none. Rows that it
            overwrites are kept in the place of the engine's.

    Raises:
        UnsupportedModelError: the engine refuses the model or the context's parameters.
        OutOfMemoryError: the cache could not be allocated.
        NativeError: llama.cpp could not make the context.
    """

    options: ContextOptions

    def __init__(
        self,
        *,
        model: _internals.LlamaModel,
        params: llama_cpp.llama_context_params,
        verbose: bool = True,
    ) -> None:
        self.model = model
        self.params = params
        self.verbose = verbose
        self.sampler = None
        self._exit_stack = ExitStack()

        options = self.options  # our_contexts() has set them
        self.tap: Tap | None = None
        native_params = support.make_params(options.config, options.keep_scores)
        if options.n_seq > 1:
            params = _for_sequences(params, options.n_seq, model.n_ctx_train())
        support.check_supported(
            model.path_model, model.model, params, native_params, silent=not verbose
        )
        with voices.heard(silent=not verbose) as said:
            ctx = api.llama_snapkv_init_from_model(model.model, params, native_params)
        if ctx is None:
            failure.fail(f"the context of {Path(model.path_model).name}", said.reason)

        self.ctx = ctx
        self.is_hybrid = bool(llama_cpp.llama_model_is_hybrid(model.model))
        self.memory = llama_cpp.llama_get_memory(ctx)
        self._sequences = {self.seq_id: self}
        self._exit_stack.callback(self._free)
        # a context must be freed before its model
        model._exit_stack.callback(self.close)

    def of_sequence(self, seq_id: int) -> SnapKVContext:
        """The native context in the eyes of another sequence: always the same object for the same one.

        It begins with this one's options, and ends when the context is closed.

        Raises:
            ConfigError: the context has no such sequence.
        """
        n_seq = llama_cpp.llama_n_seq_max(self.ctx)
        if not 0 <= seq_id < n_seq:
            raise ConfigError(
                f"sequence {seq_id}",
                f"the context has {n_seq}",
                "count from 0, or make it with more",
            )
        if seq_id not in self._sequences:
            other = copy.copy(self)
            other.seq_id, other.tap = seq_id, None
            other.behind = other._look = 0
            other._exit_stack = ExitStack()  # the native context is not its own
            self._sequences[seq_id] = other
        return self._sequences[seq_id]

    def _free(self) -> None:
        llama_cpp.llama_free(self.ctx)
        for sequence in self._sequences.values():
            sequence.ctx = None

    def prefill(
        self,
        tokens: npt.NDArray[np.int32],
        progress: Progress | None = None,
        parts: Parts | None = None,
        others: Others | None = None,
    ) -> PrefillStats:
        """Evaluate a prompt in the place of whatever the sequence held.

        Args:
            tokens: [n_prompt].
            progress: called with (done, total) while chunks are computed, when nothing of the context
                may be changed; what it raises ends the prefill and is raised here, and so are Ctrl-C
                and what a policy raises.
            parts: of the prompt; None for one without.
            others: called between two chunks, when other sequences of the native context may decode,
                be removed, saved and loaded; all of this one is refused, and so is another prefill.
                What it raises ends the prefill, too. None: they wait.

        Raises:
            ConfigError: the policy or the budget does not fit the prompt.
            NoRoomError, OutOfMemoryError, NativeError: the sequence is then empty and the context
                usable.
        """
        parts = parts or Parts()
        choice = self._choice(len(tokens), parts)

        def prefill(prompt: Any) -> int:
            return int(api.llama_snapkv_prefill(self.ctx, prompt))

        if self._evaluate(prefill, tokens, len(tokens), progress, parts, choice, others) != 0:
            failure.fail("the prefill")
        return self._stats()

    def _choice(self, n_prompt: int, parts: Parts) -> Choice | None:
        """What chooses the rows of a prompt in the engine's place; None if nothing does.

        Raises:
            ConfigError: the policy or the budget does not fit the prompt.
        """
        config = self.options.config
        n_kept, policy = config.n_kept(n_prompt), config.chooser()
        check(parts, n_prompt, n_kept, config.window_size)
        if policy is None or not config.window_size < n_kept < n_prompt:
            return None
        return Choice.of(policy, config, n_prompt, parts)

    def extend(
        self,
        pos0: int,
        tokens: npt.NDArray[np.int32],
        progress: Progress | None = None,
        parts: Parts | None = None,
        others: Others | None = None,
    ) -> PrefillStats | None:
        """Evaluate tokens from a position on, and evict all rows down to the budget.

        Args:
            pos0: of the first token; what the sequence has there and later is replaced.
            tokens: [n], at least as many as the window has.
            progress: as in prefill(), and so are others.
            parts: of all that is evaluated by then; None for such without.

        Returns:
            None if the engine cannot go on from there: the sequence is unchanged, and the whole
            conversation has to be prefilled.

        Raises:
            NoRoomError, OutOfMemoryError, NativeError: the sequence is then empty.
        """

        def extend(prompt: Any) -> int:
            return int(api.llama_snapkv_extend(self.ctx, pos0, prompt))

        end = pos0 + len(tokens)
        rc = self._evaluate(extend, tokens, end, progress, parts or Parts(), None, others)
        if rc == api.RC_REFUSED:
            return None
        if rc != 0:
            failure.fail("the prefill")
        return self._stats()

    def _evaluate(
        self,
        function: Callable[[Any], int],
        tokens: npt.NDArray[np.int32],
        end: int,
        progress: Progress | None,
        parts: Parts,
        choice: Choice | None,
        others: Others | None,
    ) -> int:
        """Call a native function with a prompt; its return code if it is none of those raised here.

        Args:
            tokens: [n].
            end: the position after the last one.
            parts: of the prompt.
        """
        raised: list[BaseException] = []

        def call(function: Callable[..., object] | None, *args: int) -> bool:
            try:
                if function is not None:
                    function(*args)
            except BaseException as e:  # cannot pass through native frames
                raised.append(e)
                return False
            return not noted and not raised

        # called even without a progress function: Python sees Ctrl-C only while it runs
        def report(done: int, total: int, _user_data: Any) -> bool:
            return call(progress, done, total)

        def give_way(_user_data: Any) -> bool:
            goes_on = call(others)
            api.llama_snapkv_keep_hidden(self.ctx, False)  # the others may keep some
            return goes_on

        n_layer = api.llama_snapkv_n_layer(self.ctx)
        tap = self.tap if choice is None else choosing(choice, n_layer)
        n_observed = 0 if choice is None else choice.n_observed
        spans = np.array(parts.protected, np.int32).reshape(-1, 2)
        begin, stop = parts.asked or (0, 0)
        is_here = 0 <= begin <= stop <= end  # one that a later prompt is to have may not be in this
        folder = self.options.config.vault_folder()
        # these must outlive the call, and so must the arrays
        on_progress = structs.llama_snapkv_progress_callback(report)
        on_tap = callback(tap, raised)
        on_yield = structs.llama_snapkv_yield_callback(*() if others is None else (give_way,))
        prompt = structs.llama_snapkv_prompt(
            seq_id=self.seq_id,
            n_tokens=len(tokens),
            tokens=pointer(tokens, ctypes.c_int32),
            protected_spans=pointer(spans, structs.llama_snapkv_span),
            n_protected=len(spans),
            question=structs.llama_snapkv_span(begin, stop)
            if is_here
            else structs.llama_snapkv_span(),
            n_queries=max(self.options.n_queries, n_observed),
            vault_dir=None if folder is None else os.fsencode(folder),
            progress=on_progress,
            on_yield=on_yield,
            tap=on_tap,
        )
        self._settle(self.options)  # another sequence may have had others
        self.behind = self._look = 0
        api.llama_snapkv_keep_hidden(self.ctx, False)
        with deferred_interrupt() as noted:
            rc = function(ctypes.byref(prompt))
        if raised:
            raise raised[0]
        if rc == api.RC_ABORTED:
            # Ctrl-C, and the handler that was there has raised nothing
            raise KeyboardInterrupt
        if rc == api.RC_NO_ROOM:
            raise NoRoomError(
                f"prompt of {len(tokens)} tokens",
                "finds no free cells",
                "raise {budget} or {decode_cells}",
            )
        return rc

    def _stats(self) -> PrefillStats:
        stats = structs.llama_snapkv_stats()
        if not api.llama_snapkv_get_stats(self.ctx, ctypes.byref(stats)):
            failure.fail("llama_snapkv_get_stats")
        return PrefillStats.of(stats, self.state_size())

    def set_config(self, options: ContextOptions) -> None:
        """Change what this sequence's next prefill does.

        Raises:
            ConfigError: the settings need more cells than the context has, or do not fit its model.
        """
        self._settle(options)
        self.options = options

    def _settle(self, options: ContextOptions) -> None:
        params = support.make_params(options.config, options.keep_scores)
        if not api.llama_snapkv_set_params(self.ctx, params):
            raise ConfigError(
                "the new settings",
                failure.last_error(),
                "keep {budget} and {decode_cells} at or below those that the context was made with",
            )


def _for_sequences(params: Any, n_seq: int, n_ctx_train: int) -> Any:
    """Parameters of a context in which each of several sequences has cells of its own."""
    several = type(params).from_buffer_copy(params)  # llama_cpp.Llama goes on to use the others
    several.n_seq_max = n_seq
    several.n_ctx = n_seq * -(-(params.n_ctx or n_ctx_train) // 256) * 256
    several.kv_unified = False
    return several


@contextmanager
def our_contexts(
    options: ContextOptions | None, kind: type[SnapKVContext] = SnapKVContext
) -> Iterator[None]:
    """While open, contexts that llama_cpp makes on this thread are ours.

    Args:
        options: of compact ones; None for the full cache.
        kind: of compact ones.
    """

    def blank() -> CheckedContext:
        if options is None:
            return object.__new__(CheckedContext)
        made = object.__new__(kind)
        made.options = options
        return made

    with substitute.contexts(blank):
        yield
