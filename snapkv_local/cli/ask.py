"""`snapkv-local ask`: questions about a document that `ingest` has made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from snapkv_local.cli.answer import Message
from snapkv_local.cli.document import (
    describe,
    model_of,
    open_document,
    readable,
    take_document_settings,
    use_document,
)
from snapkv_local.cli.loading import answer_one, load
from snapkv_local.cli.model import SYSTEM_BEFORE_DOCUMENT, model_choice, refused
from snapkv_local.cli.options import (
    chat_format_option,
    ctx_option,
    gather_loading,
    model_options,
    settings_options,
    size_decode_cells,
    warn_of_other_model,
)
from snapkv_local.cli.progress import find_model
from snapkv_local.cli.sampling import Sampling, answer_options
from snapkv_local.config import SnapKVConfig
from snapkv_local.llama.load_options import LoadOptions
from snapkv_local.profile import Profile
from snapkv_local.prompt.build import SEPARATOR


@click.command()
@click.argument(
    "path", metavar="DOCUMENT", type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.argument("questions", metavar="QUESTION...", nargs=-1)
@model_choice(
    argument=False,
    required=False,
    says="The model's file.  [default: where it was when DOCUMENT was made]",
)
@refused("-sys", "--system-prompt", why=SYSTEM_BEFORE_DOCUMENT)
@click.option("--info", is_flag=True, help="Check DOCUMENT, say what it is, and ask nothing.")
@ctx_option
@settings_options
@model_options
@answer_options
@chat_format_option
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print a JSON object for each question on stdout, one in a line.",
)
@gather_loading
def ask(
    path: Path,
    questions: tuple[str, ...],
    model: str | None,
    info: bool,
    max_tokens: int,
    sampling: Sampling,
    profile: Profile | None,
    loading: LoadOptions,
    as_json: bool,
    **options: Any,
) -> None:
    """Ask about DOCUMENT, a file that `ingest` has made.

    Each QUESTION is answered by itself, with rows that are chosen for it. The answers are streamed to
    stdout; figures go to stderr.
    """
    if bool(questions) == info:
        raise click.UsageError("give a QUESTION, or --info")
    if not all(question.strip() for question in questions):
        raise click.UsageError("a question is empty")
    options["full"] = False
    settings = take_document_settings(options, profile)
    size_decode_cells(settings, max_tokens)

    document, loading = open_document(path, loading)
    if info:
        about = describe(document)
        click.echo(json.dumps(about) if as_json else "\n".join(readable(document)))
        return
    model_path = model_of(document) if model is None else find_model(model)
    warn_of_other_model(profile, model_path)
    llm = load(model_path, SnapKVConfig(**settings), loading)
    use_document(llm, document)
    for question in questions:
        if len(questions) > 1:
            click.echo(f"> {question}", err=True)
        content = document.text + SEPARATOR + question
        messages: list[Message] = [{"role": "user", "content": content}]
        answer = answer_one(llm, messages, max_tokens, sampling, stream=not as_json)
        if as_json:
            click.echo(
                json.dumps({"model": str(model_path), "question": question, **answer.to_dict()})
            )
