"""A document's tokens and full KV cache in a file, for any number of questions later."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local import native  # isort: skip

import numpy as np
import numpy.typing as npt

from snapkv_local import fingerprint, prompt, sealed, vault
from snapkv_local.errors import DocumentError, PromptError
from snapkv_local.worded import WordedLlama

if TYPE_CHECKING:
    from snapkv_local.context import Progress
    from snapkv_local.llama import Llama

KIND = "document"


@dataclass(frozen=True, eq=False)
class Document:
    """A file that Llama.ingest() has written, open for reading.

    Attributes:
        path: of the file.
        title: as it was given.
        text: of the document.
        prefix: what the tokens spell: the chat template's words before the document, and its text.
        tokens: int32 [n_tokens].
        n_bytes: of the file.
        kv_type: of K and V, such as "f16".
        model: name, file and fingerprint of the model (fingerprint.Model).
        segment: the vault's part that it is.
    """

    path: Path
    title: str
    text: str
    prefix: str
    tokens: npt.NDArray[np.int32]
    n_bytes: int
    kv_type: str
    model: fingerprint.Model
    segment: vault.Segment

    @classmethod
    def open(cls, path: str | Path, mapped: bool = True) -> Document:
        """Read and check all of a file.

        Args:
            mapped: K and V are read from the file as they are used. False reads them into memory
                now: what happens to the file is then of no concern.

        Raises:
            DocumentError: it is missing, of another kind, truncated or damaged.
        """
        with sealed.Sealed.open(path, KIND, mapped) as file:
            found = {name: file.array(name) for name in file.names()}
            about = file.header
            text = found.pop("text").tobytes().decode()
            # a copy: each prompt is compared with them, those about other things, too
            tokens = np.array(found.pop("tokens"))
            segment = vault.from_arrays(found, tokens, about["n_swa_rows"], file.file)
            return cls(
                path=file.path,
                title=about["title"],
                text=text,
                prefix=about["opening"] + text,
                tokens=tokens,
                n_bytes=file.n_bytes,
                kv_type=about["model"]["kv_type"],
                model=fingerprint.Model(**about["model"]),
                segment=segment,
            )


def ingest(
    llm: Llama, text: str, path: str | Path, title: str, progress: Progress | None
) -> Document:
    """Llama.ingest()."""
    context = llm._context("ingest")
    if llm.snapkv is None or llm.snapkv.vault == "off":
        raise DocumentError(str(path), "needs the vault, whose K and V it holds", "use {vault}")
    opening, tokens = _opening(llm, text)
    if len(tokens) <= llm.snapkv.window:
        raise PromptError(
            f"document of {len(tokens)} tokens",
            f"is not longer than the window of {llm.snapkv.window}",
            "put it into the question",
        )
    # before hours go into the prefill; the file has little more than K and V
    sealed.check_space(path, len(tokens) * native.llama_snapkv_row_bytes(context.ctx))
    # an empty vault, so that its one segment ends with the document
    context.clear_vault()
    config = llm.snapkv
    try:
        if config.chooser() is not None:  # it may want a question, and nobody has asked yet
            llm.set_snapkv(replace(config, policy="snapkv"))
        llm.prefill(tokens, progress)
    finally:
        if llm.snapkv != config:
            llm.set_snapkv(config)
    parts = vault.segments(context)
    header = {
        "title": title,
        "opening": opening,
        "model": asdict(fingerprint.of(llm)),
        "n_swa_rows": parts[-1].n_swa_rows,
    }
    data = np.frombuffer(text.encode(), np.uint8)
    blocks = [
        sealed.Block("text", np.uint8, data.shape, [data]),
        sealed.Block("tokens", np.int32, (len(tokens),), [np.asarray(tokens, np.int32)]),
        *blocks_of(parts),
    ]
    sealed.write(path, KIND, header, blocks)
    return Document.open(path)


def blocks_of(parts: list[vault.Segment]) -> list[sealed.Block]:
    """K and V of segments that follow each other, to be written."""
    return [
        sealed.Block(name, np.uint8, (sum(map(len, pieces)), *pieces[0].shape[1:]), pieces)
        for name, pieces in vault.joined(parts)
    ]


def check(llm: Llama, document: Document) -> None:
    """Refuse a document that the model would not have computed so.

    Raises:
        DocumentError: with what differs.
    """
    own = fingerprint.of(llm)
    problem = own.differs(document.model)
    if problem is not None:
        raise DocumentError(
            str(document.path),
            f"was made by {document.model.name or document.model.file}: {problem}",
            "ask the model that made it, with its settings, or ingest the text anew",
        )
    if len(document.tokens) >= llm.n_ctx():
        raise DocumentError(
            str(document.path),
            f"has {len(document.tokens):,} tokens, and the context {llm.n_ctx():,}",
            "raise {n_ctx}",
        )
    if llm.control_words().suspects(document.text):
        opening, tokens = _opening(llm, document.text)
        # with another chat format no chat begins with the document
        if opening + document.text == document.prefix and tokens != document.tokens.tolist():
            raise DocumentError(
                str(document.path),
                "was made by a version that took words of its text for control tokens",
                "ingest the text anew",
            )


def _opening(llm: Llama, text: str) -> tuple[str, list[int]]:
    """What the chat template writes before a user's message, and the tokens of that and the text."""
    if not text.strip():
        raise PromptError("the document", "is empty", "give a text")
    heard = prompt.heard(llm, text + prompt.SEPARATOR + "?")
    wording = heard.wording
    written = heard.plain()
    at = written.rfind(text)
    if at < 0:
        raise PromptError(
            "the document",
            "is changed by the chat template",
            "strip the white space around it, or take another model",
        )
    end = at + len(text)
    prefix = heard.text[: end if wording is None else wording.cut(heard.text, end)]
    # not by documents that are open
    tokens = replace(heard, text=prefix).tokens(partial(WordedLlama.tokenize, llm), llm)
    return written[:at], tokens
