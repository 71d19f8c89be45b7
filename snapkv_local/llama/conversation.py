"""Several conversations of one loaded model, each in a sequence of its own."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local.native.context import SnapKVContext  # isort: skip

import numpy as np
from llama_cpp import _internals

from snapkv_local.llama.drafting import OwnDraft
from snapkv_local.native.shared import SharedContext
from snapkv_local.prompt.marks import Marks

if TYPE_CHECKING:
    from snapkv_local.llama.documents import DocumentedLlama

_Llama = TypeVar("_Llama", bound="DocumentedLlama")

# what a Llama knows of the sequence that it evaluates in
_OF_SEQUENCE = (
    *("_ctx", "snapkv", "input_ids", "scores", "n_tokens", "_requires_eval"),
    *("n_prompt", "n_cached", "last_prefill", "evictions", "_attached", "draft_model"),
)


@dataclass(frozen=True, eq=False)
class Conversation:
    """What a Llama knows of a conversation; another one of the same model can go on with it.

    Attributes:
        state: attributes of the Llama.
    """

    state: dict[str, Any]

    @classmethod
    def of(cls, llm: DocumentedLlama) -> Conversation:
        """The one that a Llama has."""
        return cls({name: getattr(llm, name) for name in _OF_SEQUENCE})

    @classmethod
    def empty(cls, llm: DocumentedLlama, context: Any, draft_model: Any) -> Conversation:
        """One that begins, in a sequence's context, with what drafts for it."""
        state = {
            "_ctx": context,
            "snapkv": llm.snapkv,
            "input_ids": np.zeros_like(llm.input_ids),
            "scores": np.empty_like(llm.scores) if llm._logits_all else llm.scores,
            "n_tokens": 0,
            "_requires_eval": True,
            "n_prompt": 0,
            "n_cached": 0,
            "last_prefill": None,
            "evictions": [],
            "_attached": None,
            "draft_model": draft_model,
        }
        return cls(state)

    def give_to(self, llm: DocumentedLlama) -> None:
        """The Llama goes on with it, and no longer with its own."""
        llm.__dict__.update(self.state)


def sibling(llm: _Llama) -> _Llama:
    """A Llama of the same model and native context, with nothing else of the first one's: to ask with on
    another thread. It begins with the first one's conversation.

    Documents that are open are open in it, too. It ends with the first one.
    """
    other = object.__new__(type(llm))
    other.__dict__.update(llm.__dict__)
    other._stack = contextlib.ExitStack()
    other._batch = other._stack.enter_context(
        contextlib.closing(
            _internals.LlamaBatch(n_tokens=llm.n_batch, embd=0, n_seq_max=1, verbose=llm.verbose)
        )
    )
    other._chat_handlers = dict(llm._chat_handlers)  # requests may add to the template's options
    other._marks, other._asked, other._wording = Marks(), None, None
    other._sampler = other._guide = other._held_to = None
    other.draws = other.on_token = other.prefill_progress = None
    other._generating = other._is_prompt = other._preparing = other._cut_short = False
    other._before = ()
    other._running = None
    return other


def another_draft(llm: DocumentedLlama) -> Any:
    """What drafts for another conversation of a Llama, as its own draft model does for its own.

    Raises:
        ConfigError: the draft model has no room for one.
    """
    draft = llm.draft_model
    return draft.another() if isinstance(draft, OwnDraft) else draft


def context_of(llm: DocumentedLlama, seq_id: int) -> Any:
    """The native context in the eyes of a sequence."""
    context: Any = llm._ctx
    return context.of_sequence(seq_id) if isinstance(context, SharedContext) else context


def forget(context: Any) -> None:
    """Take away all that a sequence holds, before another conversation gets it."""
    with context.gate:
        if isinstance(context, SharedContext):
            context.forget()
            return
        context.kv_cache_seq_rm(-1, -1, -1)
        if isinstance(context, SnapKVContext):
            context.clear_vault()
