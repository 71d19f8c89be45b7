"""llama_cpp.Llama whose long prompts are compressed."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local.native.context import ContextOptions, Progress, our_contexts  # isort: skip


from snapkv_local import foreign
from snapkv_local.config import N_THREADS_MAX, SnapKVConfig
from snapkv_local.errors import ConfigError, DocumentError
from snapkv_local.llama import saved
from snapkv_local.llama.completion import CompletingLlama
from snapkv_local.mapped import MappedFile
from snapkv_local.models import files, hub
from snapkv_local.native import support, vault, voices
from snapkv_local.policies.view import LayerView
from snapkv_local.prompt.chat import Chat
from snapkv_local.prompt.marks import Marks
from snapkv_local.prompt.parts import ranges
from snapkv_local.stats import PrefillStats
from snapkv_local.storage.document import Document

if TYPE_CHECKING:
    from typing_extensions import Self


class Llama(CompletingLlama):
    """llama_cpp.Llama with SnapKV.

    With snapkv=None it is llama_cpp.Llama. With a SnapKVConfig, n_ctx is the longest conversation,
    in tokens, while the KV cache has cells for the budget and for new tokens only. Prompts longer
    than the budget are evaluated layer group by layer group and evicted on the way; shorter ones as
    usual. Everything else is inherited: completions, chat, grammars, streaming, tool calls, saved
    states.

    A conversation that goes on is evaluated from where it was. When its cells run out, in a turn or
    while tokens are generated, the last tokens vote anew, all rows compete, and those beyond the
    budget go. last_prefill then has the figures of the turn, and evictions those of each time
    during the answer. A prompt that parts from the compressed one before its end, such as another
    question about the same document, is prefilled again: the rows were kept for the first one. With
    SnapKVConfig(vault="ram") such a prefill takes what it has in common with the last prompt from
    the vault, and each turn chooses rows anew. A prompt that is given again goes on from its last
    token, which then attends to the compact cache as every later token does, and no longer to the
    whole prompt: the answer may differ from the first one. reset() makes sure that it is evaluated
    anew.

    Args:
        model_path: GGUF file.
        snapkv: how to compress; None for the full cache.
        keep_scores: keep the pooled scores of each prefill for prefill_scores(); they take 4 bytes
            for each prompt token, KV head and layer.
        keep_queries: of so many last prompt tokens the vault keeps the queries, for layer_views();
            the observation window's are always there.
        prefill_progress: called with (done, total) while a prompt is evaluated. What it raises ends
            the prefill.
        kwargs: all other arguments of llama_cpp.Llama. snapkv turns flash_attn on, and swa_full off
            unless it is given: sliding-window layers then have cells for their window.

    Raises:
        ConfigError: flash_attn=False or embedding=True together with snapkv, or keep_scores without
            it.
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
        **kwargs: Any,
    ) -> None:
        # close(), which __del__ calls, needs it even if an exception leaves this function
        self._stack = contextlib.ExitStack()
        self.snapkv = snapkv
        self.keep_scores = keep_scores
        self.keep_queries = keep_queries
        self.prefill_progress = prefill_progress
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
        elif keep_scores:
            raise ConfigError(
                "keep_scores=True", "there are no scores without snapkv", "pass snapkv"
            )
        _check_numbers(kwargs)
        files.check(Path(model_path))
        self.maps_files = bool(kwargs.get("use_mmap", True))
        # with an adapter llama_cpp maps none
        if self.maps_files and kwargs.get("lora_path") is None:
            # from now on: what happens while it is loaded counts, too
            self._model_files = tuple(map(MappedFile, files.files(Path(model_path))))
        options = None if snapkv is None else ContextOptions(snapkv, keep_scores, keep_queries)
        # a vocabulary has no layers, and so no cache to compress
        made = our_contexts(None if kwargs.get("vocab_only") else options)
        with voices.heard(silent=not kwargs.get("verbose", True)) as said, made:
            try:
                super().__init__(model_path, **kwargs)
            except Exception as e:
                self._stack.close()  # what is loaded by then
                raise foreign.from_load(e, str(model_path), said.reason) from e

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

    def kept_positions(self) -> npt.NDArray[np.int32]:
        """Prompt positions kept before the window, ascending.

        Returns:
            int32 [n_layer_cached, n_head_kv, n_kept_prefix].

        Raises:
            ConfigError: the prompt was not compressed, or the heads keep different numbers of rows.
        """
        return self._context("kept_positions").kept()

    def cached_layers(self) -> tuple[int, ...]:
        """The model's numbers of the layers whose cache is compressed, from 0: [n_layer_cached].

        Layers with a sliding window or without attention are not among them.
        """
        return self._context("cached_layers").layers()

    def prefill_scores(self) -> npt.NDArray[np.float32]:
        """Pooled scores of the last prefill.

        Returns:
            float32 [n_layer_cached, n_head_kv, n_prompt - window].

        Raises:
            ConfigError: made without keep_scores=True, or the prompt was not compressed.
        """
        return self._context("prefill_scores").scores()

    def coverage(self) -> npt.NDArray[np.float32]:
        """Share of the window's attention mass that lies on the kept rows, after the last prefill.

        Returns:
            float32 [n_layer_cached, n_head_kv], in [0, 1]; last_prefill.coverage is its mean.

        Raises:
            ConfigError: the prompt was not compressed.
        """
        return self._context("coverage").coverage()

    def layer_views(self) -> list[LayerView]:
        """Queries, keys and values of each cached layer, from the vault, as policies see them.

        Raises:
            ConfigError: made without a vault, or nothing was prefilled.
            DocumentError: the vault reads from a file that has changed.
        """
        self._check_vault()
        return self._context("layer_views").layer_views()

    def select_rows(self, ids: Sequence[npt.NDArray[np.int32]] | None) -> None:
        """Choose other rows of the last prompt, from the vault. What followed the prompt is removed.

        Args:
            ids: for each cached layer int32 [n_head_kv, n_kept]: prompt positions before the window,
                ascending for each head. Layers may differ in n_kept. The window's rows stay. None
                keeps the whole prompt, if the cache has cells for it.

        Raises:
            ConfigError: made without a vault, or ids do not fit the prompt.
            NoRoomError: more rows than the cache has cells.
            DocumentError: the vault reads from a file that has changed.
        """
        self._check_vault()
        self._context("select_rows").select_rows(ids)
        self.n_tokens = self.n_prompt

    def set_protected(self, spans: Sequence[tuple[int, int]]) -> None:
        """Positions that stay whatever the votes say, such as the system prompt's, in later prefills.

        Args:
            spans: [begin, end) positions. Those in a prompt's window stay anyway; positions of an
                answer are protected from the time when they are no longer in the window.

        Raises:
            ConfigError: a span is no range. A prefill whose budget does not hold them raises it, too.
        """
        self._context("set_protected")
        self._marks.protected = ranges("protected positions", spans)

    def set_question(self, span: tuple[int, int] | None) -> None:
        """Where the question stands in later prompts: its words vote for the rows.

        That is for policies that ask (`question`, `windows`), and for `observation="question"`, where
        those of its words vote that are in the window. In a chat it is found without this: it is
        the last paragraph of the last user turn.

        Args:
            span: [begin, end) positions of its words, instead of a chat's; None for the chat's.
        """
        self._marks.question = span

    def clear_vault(self) -> None:
        """Free the vault; the conversation goes on."""
        self._context("clear_vault").clear_vault()
        self._attached = None

    def ingest(
        self,
        text: str,
        path: str | Path,
        *,
        title: str = "",
        progress: Progress | None = None,
    ) -> Document:
        """Evaluate a document once, and write its tokens, K and V to a file for later questions.

        The tokens are those of a user's message that begins with the text, in the model's chat
        template. What the context held is replaced.

        Args:
            text: of the document.
            path: of the file, *.snapkv by custom; replaced if it is there.
            title: for people.
            progress: as for prefill().

        Returns:
            The document, which open_document() takes.

        Raises:
            ConfigError: made without snapkv.
            DocumentError: made without a vault, or the disk has no space for the file. It is refused
                before the prefill if it can be known.
            PromptError: the text is empty, not longer than the window, or longer than n_ctx.
            NoRoomError, OutOfMemoryError, NativeError: as prefill().
        """
        return saved.ingest(self, text, path, title, progress)

    def open_document(self, opened: Document | str | Path) -> Document:
        """From now on prompts that begin with a document's text take its K and V from its file.

        With use_mmap=False the file is read into memory here, as the model's is.

        A question is asked with a user's message of the document's text, an empty line and the
        question. Only what follows the document is evaluated, and the question's own rows are
        chosen from all of it.

        Raises:
            ConfigError: made without snapkv.
            DocumentError: the file cannot be read, the document is of another model or of other
                settings, or this Llama has no vault.
        """
        self._context("open_document")
        if self.snapkv is None or self.snapkv.vault == "off":
            raise DocumentError(str(opened), "needs a vault to choose rows from", "use {vault}")
        found = opened
        if not isinstance(found, Document):
            found = Document.open(found, mapped=self.maps_files)
        saved.check(self, found)
        # one that has changed gives way to what is now at its place
        others = [known for known in self.documents if known.segment.change() is None]
        self.documents = (*others, found)
        return found

    def save_session(self, path: str | Path) -> int:
        """Write the conversation to a file: compact cache, tokens, and the vault if there is one.

        Returns:
            Bytes of the file.

        Raises:
            ConfigError: made without snapkv.
            DocumentError: the disk has no space for it, or the vault reads from a file that has
                changed. A file that was there stays then.
        """
        self._check_vault()
        return saved.save(self, path)

    def load_session(self, path: str | Path) -> None:
        """Go on with a conversation that save_session() has written, in the place of this one.

        Without a vault here, the file's is left out.

        Raises:
            ConfigError: made without snapkv.
            DocumentError: the file cannot be read, is of another model or of other settings, or is
                longer than n_ctx. This conversation stays then.
            NoRoomError: the KV cache has too few cells. The context is empty then.
        """
        self._attached = saved.load(self, path)

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """As llama_cpp.Llama.tokenize(); what an open document spells becomes its tokens.

        A document ends at a token's end, so the text behind it has tokens of its own.
        """
        for found in self.documents if special else ():
            rest = self._behind(found.prefix, text)
            if rest is not None:
                behind = super().tokenize(rest, add_bos=False, special=True)
                return [*found.tokens.tolist(), *behind]
        return super().tokenize(text, add_bos, special)

    def _behind(self, prefix: str, text: bytes) -> bytes | None:
        """What follows a prefix in a text that may have marks; None if it begins with something else."""
        if self._wording is None:
            start = prefix.encode()
            return text[len(start) :] if text.startswith(start) else None
        written = text.decode()
        if not self._wording.plain(written).startswith(prefix):
            return None
        return written[self._wording.cut(written, len(prefix)) :].encode()

    def __getstate__(self) -> dict[str, Any]:
        return {
            **super().__getstate__(),  # type: ignore[no-untyped-call]
            "snapkv": self.snapkv,
            "keep_scores": self.keep_scores,
            "keep_queries": self.keep_queries,
            "prefill_progress": self.prefill_progress,
        }

    def _attach(self, prompt: npt.NDArray[np.int32]) -> None:
        """Give the vault the document that has more in common with the prompt than it has itself.

        Raises:
            DocumentError: the prompt begins with a document whose file has changed.
        """
        given = [found.segment for found in self.documents]
        if self._attached is not None:
            given.append(self._attached)
        for segment in given:
            error = segment.change()
            if error is None:
                continue
            if segment is self._attached:
                self.clear_vault()
            if _n_common(segment.tokens, prompt) == len(segment.tokens):
                raise error
        whole = [found for found in self.documents if found.segment.change() is None]
        if not whole:
            return
        context = self._context("prefill")
        common = [_n_common(found.tokens, prompt) for found in whole]
        if max(common) > _n_common(vault.tokens(context), prompt):
            best = whole[common.index(max(common))]
            self.clear_vault()
            self._attached = best.segment
            vault.attach(context, best.segment)


def _n_common(a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]) -> int:
    """Tokens with which both begin."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


def _check_numbers(kwargs: dict[str, Any]) -> None:
    """What llama_cpp hands on as it is, and llama.cpp takes for something else."""
    for name, least, most in (
        ("n_ctx", 0, 2**31 - 1),
        ("n_batch", 1, 2**31 - 1),
        ("n_ubatch", 1, 2**31 - 1),
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
