"""Documents and sessions: what a Llama reads from files and writes to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local.native.context import Progress  # isort: skip

from snapkv_local.errors import DocumentError
from snapkv_local.llama import saved, session
from snapkv_local.llama.kept import KeepingLlama
from snapkv_local.llama.turn import n_common
from snapkv_local.native import vault
from snapkv_local.storage.document import Document


class DocumentedLlama(KeepingLlama):
    """What Llama does with files.

    Attributes:
        documents: that are open.
    """

    documents: tuple[Document, ...]

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
        """From now on, take K and V of prompts that begin with a document's text from its file.

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
        return session.save(self, path)

    def load_session(self, path: str | Path) -> None:
        """Go on with a conversation that save_session() has written, in the place of this one.

        If this Llama has no vault, that of the file is left out.

        Raises:
            ConfigError: made without snapkv.
            DocumentError: the file cannot be read, is of another model or of other settings, or is
                longer than n_ctx. This conversation stays then.
            NoRoomError: the KV cache has too few cells. The context is empty then.
        """
        self._attached = session.load(self, path)

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
            if n_common(segment.tokens, prompt) == len(segment.tokens):
                raise error
        whole = [found for found in self.documents if found.segment.change() is None]
        if not whole:
            return
        context = self._context("prefill")
        common = [n_common(found.tokens, prompt) for found in whole]
        if max(common) > n_common(vault.tokens(context), prompt):
            best = whole[common.index(max(common))]
            self.clear_vault()
            self._attached = best.segment
            vault.attach(context, best.segment)
