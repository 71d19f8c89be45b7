"""Documents that `ingest` has made, for the commands that ask about them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from snapkv_local import profile as profiles
from snapkv_local.cli.model import kv_type_words
from snapkv_local.cli.options import take_settings
from snapkv_local.cli.types import KV_TYPES
from snapkv_local.errors import DocumentError
from snapkv_local.llama.load_options import LoadOptions, split_kv_type
from snapkv_local.models import files
from snapkv_local.report.units import size

if TYPE_CHECKING:
    from snapkv_local.llama.llama import Llama
    from snapkv_local.storage.document import Document


def take_document_settings(
    options: dict[str, Any], profile: profiles.Profile | None = None
) -> dict[str, Any]:
    """As take_settings(), with the vault that a document needs.

    Raises:
        click.UsageError: --full, or --vault off.
    """
    if options["full"]:
        raise click.UsageError("each question about a document has its own rows: leave out --full")
    if options["vault"] == "off":
        raise click.UsageError("a document takes the place of the vault: leave out --vault off")
    return {"vault": "ram", **(take_settings(options, profile) or {})}


def open_document(path: Path, options: LoadOptions) -> tuple[Document, LoadOptions]:
    """A document, and the options with its type of cache.

    Raises:
        DocumentError: as Document.open(); or another type of cache is asked for.
    """
    # only now: it loads the native library
    from snapkv_local import Document

    document = Document.open(path, mapped=not options.no_mmap)
    if not set(split_kv_type(document.kv_type)) <= set(KV_TYPES):
        raise DocumentError(
            str(path),
            f"has K and V in {document.kv_type}, which the command line does not load",
            "use it from Python, or make it again with `snapkv-local ingest`",
        )
    wanted = options.kv_type or document.kv_type
    if document.kv_type != wanted:
        raise DocumentError(
            str(path),
            f"has K and V in {document.kv_type}, and the cache is {wanted}",
            f"use {kv_type_words(document.kv_type)}, or make it again with {kv_type_words(wanted)}",
        )
    return document, replace(options, kv_type=wanted)


def use_document(llm: Llama, document: Document) -> Document:
    """Open a document in a model, for chats about it.

    Raises:
        DocumentError: as Llama.open_document(); or chats do not begin with it.
    """
    from snapkv_local.prompt import template
    from snapkv_local.prompt.build import SEPARATOR

    llm.open_document(document)
    heard = template.heard(llm, document.text + SEPARATOR)
    if not heard.plain().startswith(document.prefix):
        raise DocumentError(
            str(document.path),
            "was made with another chat format",
            "give the --chat-format that `ingest` had, or make it again",
        )
    return document


def model_of(document: Document) -> Path:
    """The file of the model that a document was made with.

    Raises:
        DocumentError: it is no longer there.
    """
    path = Path(document.model.path)
    if not path.exists():
        raise DocumentError(
            str(document.path),
            f"was made with {_name(document)}, which is no longer at {path}",
            "name its file with --model",
        )
    files.check(path)
    return path


def describe(document: Document) -> dict[str, Any]:
    """What a document is, for JSON."""
    return {
        "document": str(document.path),
        "title": document.title,
        "n_tokens": len(document.tokens),
        "n_bytes": document.n_bytes,
        "kv_type": document.kv_type,
        "model": {"name": document.model.name, "path": document.model.path},
    }


def readable(document: Document) -> list[str]:
    """What a document is, for people: lines."""
    return [
        f"{document.title}: {len(document.tokens):,} tokens",
        f"{size(document.n_bytes)}, K and V in {document.kv_type}, whole",
        f"made with {_name(document)}, {document.model.path}",
    ]


def _name(document: Document) -> str:
    return document.model.name or document.model.file
