"""`snapkv-local run`: ask a model about documents, or chat with it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from snapkv_local.cli.answer import Message
from snapkv_local.cli.chat_template import chat_template_options
from snapkv_local.cli.console import is_typed
from snapkv_local.cli.document import model_of, open_document, take_document_settings, use_document
from snapkv_local.cli.drafting import draft_options
from snapkv_local.cli.loading import answer_one, load, read_document
from snapkv_local.cli.model import SYSTEM_BEFORE_DOCUMENT, model_choice
from snapkv_local.cli.options import (
    ctx_option,
    document_option,
    files_option,
    full_option,
    gather_loading,
    json_option,
    model_options,
    settings_options,
    size_decode_cells,
    take_settings,
    warn_of_other_model,
)
from snapkv_local.cli.progress import find_model
from snapkv_local.cli.sampling import Sampling, answer_options
from snapkv_local.config import SnapKVConfig
from snapkv_local.errors import TextFileError
from snapkv_local.llama.load_options import LoadOptions
from snapkv_local.profile import Profile
from snapkv_local.reading.text import STDIN


@click.command()
@model_choice(required=False)
@ctx_option
@files_option()
@document_option
@click.option("-p", "--prompt", help="The question; without it stdin is read, or a chat opens.")
@click.option("-sys", "--system-prompt", help="The system prompt of the chat.")
@settings_options
@model_options
@answer_options
@draft_options
@chat_template_options
@full_option
@json_option
@gather_loading
def run(
    model: str | None,
    files: tuple[Path, ...],
    document: Path | None,
    prompt: str | None,
    system_prompt: str | None,
    max_tokens: int,
    sampling: Sampling,
    profile: Profile | None,
    loading: LoadOptions,
    as_json: bool,
    **options: Any,
) -> None:
    """Ask MODEL a question about documents, or chat with it.

    --document names a file that `ingest` has made. The texts of --file come after it, and are read
    once. The answer is streamed to stdout; figures go to stderr.
    """
    if model is None and document is None:
        raise click.UsageError("name one MODEL: as the argument, with --model, or with -hf")
    if system_prompt is not None and document is not None:
        raise click.UsageError(f"--system-prompt: {SYSTEM_BEFORE_DOCUMENT}")
    chats = prompt is None and is_typed(sys.stdin) and STDIN not in files
    if chats and as_json:
        raise click.UsageError("--json answers one question: give --prompt")
    take = take_settings if document is None else take_document_settings
    settings = take(options, profile)
    if not chats:
        size_decode_cells(settings, max_tokens)

    opened = None
    if document is not None:
        opened, loading = open_document(document, loading)
    path = model_of(opened) if opened and model is None else find_model(model or "")
    warn_of_other_model(profile, path)
    if STDIN in files and prompt is None:
        raise click.UsageError("--file - reads stdin: give the question with --prompt")
    texts = [*([opened.text] if opened else []), *(read_document(file) for file in files)]
    if prompt is None and not chats:
        prompt = read_question()
    if prompt is not None and not prompt.strip():
        raise click.UsageError("the question is empty: give it with --prompt")

    llm = load(path, None if settings is None else SnapKVConfig(**settings), loading)
    if opened is not None:
        use_document(llm, opened)
    messages: list[Message] = []
    if system_prompt is not None:
        messages.append({"role": "system", "content": system_prompt})
    for question in [prompt] if prompt is not None else questions():
        messages.append({"role": "user", "content": "\n\n".join([*texts, question])})
        texts = []
        answer = answer_one(llm, messages, max_tokens, sampling, stream=not as_json)
        messages.append({"role": "assistant", "content": answer.text})
        if as_json:
            click.echo(
                json.dumps({"model": str(path), "full": options["full"], **answer.to_dict()})
            )


def read_question() -> str:
    """The question, from stdin.

    Raises:
        click.UsageError: stdin has no text.
    """
    try:
        return read_document(STDIN)
    except TextFileError as e:
        raise click.UsageError(f"no question: {e}, or the question with --prompt") from e


def questions() -> Iterator[str]:
    """Lines that a person types, until the end of input (Ctrl-D)."""
    while True:
        click.echo("> ", nl=False, err=True)
        try:
            question = input().strip()
        except EOFError:
            click.echo(err=True)
            return
        if question:
            yield question
