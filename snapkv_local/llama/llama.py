"""llama_cpp.Llama whose long prompts are compressed."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local.native.context import ContextOptions, Progress, our_contexts  # isort: skip


from snapkv_local import foreign
from snapkv_local.config import N_PARALLEL_MAX, N_THREADS_MAX, SnapKVConfig
from snapkv_local.errors import ConfigError, SnapKVError
from snapkv_local.llama import conversation, drafting
from snapkv_local.llama.conversation import Conversation
from snapkv_local.llama.documents import DocumentedLlama
from snapkv_local.llama.heads import HeadDraft
from snapkv_local.mapped import MappedFile
from snapkv_local.models import files, hub
from snapkv_local.models.gguf_shape import too_many_positions
from snapkv_local.native import support, voices
from snapkv_local.native.shared import kind_of
from snapkv_local.native.substitute import prediction_heads
from snapkv_local.prompt.chat import Chat
from snapkv_local.prompt.marks import Marks
from snapkv_local.stats import PrefillStats
from snapkv_local.storage.document import Document

if TYPE_CHECKING:
    from llama_cpp.llama_speculative import LlamaDraftModel
    from typing_extensions import Self


class Llama(DocumentedLlama):
    """llama_cpp.Llama with SnapKV.

    With snapkv=None it behaves as llama_cpp.Llama does. With a SnapKVConfig, n_ctx is the longest
    conversation, in tokens, while the KV cache has cells for the budget and for new tokens only.
    Prompts longer than the budget are evaluated layer group by layer group, and rows are evicted on
    the way; shorter ones are evaluated as usual. Everything else is inherited: completions, chat,
    grammars, streaming, tool calls, saved states.

    A conversation that goes on is evaluated from where it was. When its cells run out, in a turn or
    while tokens are generated, the last tokens vote again, all rows compete, and those beyond the
    budget go. last_prefill then has the figures of the turn, and evictions those of each time
    during the answer. A prompt that parts from the compressed one before its end, such as another
    question about the same document, is prefilled again: the rows were kept for the first one. With
    SnapKVConfig(vault="ram") such a prefill takes what it has in common with the last prompt from
    the vault, and each turn chooses rows again. A prompt that is given again goes on from its last
    token, which then attends to the compact cache as every later token does, and no longer to the
    whole prompt: the answer may differ from the first one. reset() makes sure that it is evaluated
    again.

    Args:
        model_path: GGUF file.
        snapkv: how to compress; None for the full cache.
        keep_scores: keep the pooled scores of each prefill for prefill_scores(); they take 4 bytes
            for each prompt token, KV head and layer.
        keep_queries: of so many last prompt tokens the vault keeps the queries, for layer_views();
            the observation window's are always there.
        prefill_progress: called with (done, total) while a prompt is evaluated. What it raises ends
            the prefill.
        n_parallel: conversations that there is room for, each with a compact cache of its own for n_ctx
            tokens: conversation() has the others.
        load_mtp: load the model's prediction heads, too, for a HeadDraft that comes later; with one as
            draft_model they are loaded anyway.
        kwargs: all other arguments of llama_cpp.Llama. snapkv turns flash_attn on, and swa_full off
            unless it is given: sliding-window layers then have cells for their window.

    Raises:
        ConfigError: flash_attn=False or embedding=True together with snapkv, keep_scores without
            snapkv, an n_ctx beyond the positions that a model such as GPT-2 has learned embeddings of,
            or a draft_model that set_draft_model() refuses.
        ModelFileError: the file is missing, truncated or not GGUF.
        UnsupportedModelError: the engine refuses the model, with its reason.
        OutOfMemoryError: the cache could not be allocated.
    """

    def __init__(
        self,
        model_path: str,
        *,
        snapkv: SnapKVConfig | None = None,
        keep_scores: bool = False,
        keep_queries: int = 0,
        prefill_progress: Progress | None = None,
        n_parallel: int = 1,
        load_mtp: bool = False,
        **kwargs: Any,
    ) -> None:
        # close(), which __del__ calls, needs it even if an exception leaves this function
        self._stack = contextlib.ExitStack()
        self.snapkv = snapkv
        self.keep_scores = keep_scores
        self.keep_queries = keep_queries
        self.prefill_progress = prefill_progress
        self.n_parallel = n_parallel
        self._sequences = {0}  # of this and of the others
        self.last_prefill: PrefillStats | None = None
        self.evictions: list[PrefillStats] = []
        self.n_prompt = 0
        self.n_cached = 0
        self._is_prompt = False
        self.documents: tuple[Document, ...] = ()
        self._attached = None
        self._model_files = ()
        self._generating = False
        self._marks = Marks()
        self._asked: Chat | None = None
        self._preparing = False
        self._cut_short = False

        if snapkv is not None:
            _check_arguments(kwargs)
            kwargs["flash_attn"] = True
            kwargs.setdefault("swa_full", False)
            if kwargs.get("n_gpu_layers", 0) == 0 and support.unproven_devices():
                kwargs.setdefault("op_offload", False)  # else such a GPU gets products all the same
        elif n_parallel > 1:
            raise ConfigError(
                f"n_parallel={n_parallel}",
                "the full cache holds one conversation",
                "pass snapkv, or leave it out",
            )
        elif keep_scores:
            raise ConfigError(
                "keep_scores=True", "there are no scores without snapkv", "pass snapkv"
            )
        _check_numbers({**kwargs, "n_parallel": n_parallel})
        files.check(Path(model_path))
        self.maps_files = bool(kwargs.get("use_mmap", True))
        # with an adapter llama_cpp maps none
        if self.maps_files and kwargs.get("lora_path") is None:
            # from now on: what happens while it is loaded counts, too
            self._model_files = tuple(map(MappedFile, files.files(Path(model_path))))
        options = (
            None
            if snapkv is None
            else ContextOptions(snapkv, keep_scores, keep_queries, n_parallel)
        )
        # a vocabulary has no layers, and so no cache to compress
        made = our_contexts(None if kwargs.get("vocab_only") else options, kind_of(options))
        heads = prediction_heads(load_mtp or isinstance(kwargs.get("draft_model"), HeadDraft))
        with voices.heard(silent=not kwargs.get("verbose", True)) as said, made, heads:
            try:
                super().__init__(model_path, **kwargs)
                foreign.check_adapter(self, said.reason)
            except Exception as e:
                self._stack.close()  # what is loaded by then
                raise foreign.from_load(e, str(model_path), said.reason) from e
        # the model frees it; llama_cpp would do so again where the model goes first, as it may at exit
        self._lora_adapter = None
        n_positions = support.n_positions(self._model.model)
        # embeddings are of many short texts, and a long one is an error of its own
        if n_positions is not None and n_positions < self.n_ctx() and not kwargs.get("embedding"):
            self.close()
            raise too_many_positions(
                f"n_ctx={self.context_params.n_ctx}",
                n_positions,
                f"give {{n_ctx={n_positions}}} or less",
            )
        # llama_cpp keeps all logits where there are drafts, and we those of one batch
        self._logits_all = bool(kwargs.get("logits_all"))
        try:
            self.set_draft_model(self.draft_model)
        except SnapKVError:
            self.close()
            raise

    def set_draft_model(self, draft_model: LlamaDraftModel | None) -> None:
        """Let later answers have drafts of a draft model.

        Args:
            draft_model: a ModelDraft, a PromptLookup, a HeadDraft, or another of llama_cpp's kind; None for
                none. Conversations that begin later have one of their own, of the first three kinds.

        Raises:
            ConfigError: the draft model is not fit to draft for this one, or this one has recurrent layers
                and no compact cache, or was loaded without its prediction heads.
            UnsupportedModelError: it has no such heads, or some that were never run.
            OutOfMemoryError: there is no room for the states of its recurrent layers.
        """
        if draft_model is not None:
            drafting.refuse_recall(self, "draft_model")
            drafting.reserve(self, "draft_model")
        if isinstance(draft_model, drafting.ModelDraft):
            draft_model.check(self)
        if isinstance(draft_model, HeadDraft):
            draft_model.attach(self)
        self.draft_model = draft_model

    def conversation(self) -> Self:
        """Another conversation with the model, in one of the n_parallel sequences that is free.

        It has its own cache, vault, statistics and protected positions, and what it holds is gone when
        it is closed. Several may be used at once, each on a thread of its own: tokens that they generate
        share each step, and a long prompt lets the others go on between its chunks. It ends with this
        Llama.

        Raises:
            ConfigError: all sequences are taken.
        """
        free = set(range(self.n_parallel)) - self._sequences
        if not free:
            raise ConfigError(
                "conversation()",
                f"there is room for {self.n_parallel}, and each is taken",
                "close one, or raise {n_parallel}",
            )
        seq_id = min(free)
        draft = conversation.another_draft(self)
        other, context = conversation.sibling(self), conversation.context_of(self, seq_id)
        self._sequences.add(seq_id)
        Conversation.empty(self, context, draft).give_to(other)

        def give_back() -> None:
            if context.ctx is not None:
                context.forget()
            self._sequences.discard(seq_id)
            if isinstance(draft, drafting.OwnDraft):
                draft.close()

        other._stack.callback(give_back)
        return other

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str | None = None,
        additional_files: Sequence[str] | None = None,
        local_dir: hub.StrPath | None = None,
        local_dir_use_symlinks: bool | str = "auto",
        cache_dir: hub.StrPath | None = None,
        **kwargs: Any,
    ) -> Self:
        """A model of the Hugging Face hub, downloaded unless it is cached. Needs the extra `hub`.

        Args:
            repo_id: OWNER/REPO.
            filename: a file's name, a pattern such as *q8_0.gguf, or a quantization such as Q8_0;
                None takes Q4_K_M, or else the only model. A split model is downloaded whole.
            additional_files: names or patterns of other files to download.
            local_dir: a folder that gets the files, instead of the cache.
            local_dir_use_symlinks: without effect, as huggingface_hub has dropped it.
            cache_dir: instead of huggingface_hub's.
            kwargs: all other arguments of Llama.

        Raises:
            ModelFileError: as hub.download().
        """
        path = hub.download(
            repo_id,
            filename,
            additional_files=additional_files or (),
            cache_dir=cache_dir,
            local_dir=local_dir,
        )
        return cls(str(path), **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {
            **super().__getstate__(),  # type: ignore[no-untyped-call]
            "snapkv": self.snapkv,
            "keep_scores": self.keep_scores,
            "keep_queries": self.keep_queries,
            "prefill_progress": self.prefill_progress,
            "n_parallel": self.n_parallel,
        }


def _check_numbers(kwargs: dict[str, Any]) -> None:
    """What llama_cpp hands on as it is, and llama.cpp takes for something else."""
    for name, least, most in (
        ("n_ctx", 0, 2**31 - 1),
        ("n_batch", 1, 2**31 - 1),
        ("n_ubatch", 1, 2**31 - 1),
        ("n_parallel", 1, N_PARALLEL_MAX),
        ("n_threads", 0, N_THREADS_MAX),
        ("n_threads_batch", 0, N_THREADS_MAX),
    ):
        value = kwargs.get(name)
        if value is not None and not least <= value <= most:
            raise ConfigError(
                f"{name}={value}", "is out of range", f"give a number from {least} to {most}"
            )


def _check_arguments(kwargs: dict[str, Any]) -> None:
    if not kwargs.get("flash_attn", True):
        raise ConfigError(
            "flash_attn=False",
            "SnapKV reads queries and keys from flash attention",
            "leave it out, or turn it on",
        )
    if kwargs.get("embedding", False):
        raise ConfigError(
            "embedding=True",
            "SnapKV compresses prompts for generation",
            "leave snapkv out for embeddings",
        )
