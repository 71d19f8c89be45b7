"""`snapkv-local extract`: the passages that a query points at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from snapkv_local.cli.loading import can_chat, load, read_exactly
from snapkv_local.cli.model import model_choice
from snapkv_local.cli.options import (
    chat_format_option,
    ctx_option,
    files_option,
    gather_loading,
    json_option,
    model_options,
)
from snapkv_local.cli.progress import PrefillBar, find_model
from snapkv_local.extract.passages import UNITS, cut
from snapkv_local.llama.load_options import LoadOptions


@click.command()
@model_choice()
@files_option("A text, source code, PDF or DOCX; may be repeated, and - is stdin.", required=True)
@click.option("--query", required=True, help="What to look for.")
@click.option(
    "--top",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="How many passages are shown.",
)
@click.option(
    "--unit",
    type=click.Choice(UNITS),
    default="auto",
    show_default=True,
    help="What a passage is; auto takes functions in source code, and sentences in other texts.",
)
@ctx_option
@model_options
@chat_format_option
@json_option
@gather_loading
def extract(
    model: str,
    files: tuple[Path, ...],
    query: str,
    top: int,
    unit: Any,
    loading: LoadOptions,
    as_json: bool,
) -> None:
    """Find the passages of documents that a query points at.

    Passages are sentences, or functions of source code. Nothing is generated: the model reads each
    document with the query, and its attention votes. Offsets count the characters of the file's text.
    A document that is longer than the context is read in parts.
    """
    if not query.strip():
        raise click.UsageError("the query is empty: say with --query what to look for")
    # only now: it needs the packages that compute
    from snapkv_local.extract.votes import CONFIG, Extractor

    path = find_model(model)
    texts = [read_exactly(file) for file in files]
    passages = [cut(text, unit, file.name) for text, file in zip(texts, files, strict=True)]
    llm = load(path, CONFIG, loading, keep_scores=True, must_chat=False)
    with PrefillBar(llm, "ranking passages"):
        raw = not can_chat(llm, loading)
        found = Extractor(llm, texts, passages, raw).rank(query)[:top]
    if as_json:
        results = [{"file": str(files[passage.document]), **passage.to_dict()} for passage in found]
        click.echo(json.dumps({"model": str(path), "query": query, "passages": results}))
        return
    for passage in found:
        where = f"{files[passage.document]}:{passage.start}-{passage.end}"
        click.echo(f"{click.style(where, bold=True)}  score {passage.score:.4f}")
        click.echo("\n".join(f"    {line}" for line in passage.text.splitlines()) + "\n")
