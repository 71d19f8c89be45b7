"""`snapkv-local inspect`: which tokens of a prompt were kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from snapkv_local.cli.console import result_console
from snapkv_local.cli.loading import can_chat, load, read_document
from snapkv_local.cli.model import model_choice
from snapkv_local.cli.options import (
    chat_format_option,
    choice_options,
    config_options,
    ctx_option,
    files_option,
    gather_loading,
    json_option,
    model_options,
    take_config,
)
from snapkv_local.cli.progress import PrefillBar, find_model
from snapkv_local.config import SnapKVConfig
from snapkv_local.llama.load_options import LoadOptions


@click.command()
@model_choice()
@ctx_option
@files_option()
@click.option("-p", "--prompt", "question", required=True, help="The question.")
@config_options
@choice_options
@model_options
@chat_format_option
@click.option(
    "--layer", type=click.IntRange(0), help="Show only the heads of this layer; the first is 0."
)
@click.option(
    "--spans",
    "n_spans",
    type=click.IntRange(0),
    default=20,
    show_default=True,
    help="How many kept passages are listed.",
)
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a page with the text to this file. It needs no other file and no network.",
)
@json_option
@gather_loading
def inspect(
    model: str,
    files: tuple[Path, ...],
    question: str,
    layer: int | None,
    n_spans: int,
    html: Path | None,
    loading: LoadOptions,
    as_json: bool,
    **options: Any,
) -> None:
    """Show which tokens of a prompt are kept.

    On a terminal, the text is coloured by the share of KV heads that keep each token. In a pipe, it
    prints figures and a list of what is kept most. Nothing is generated.
    """
    question = question.strip()
    if not question:
        raise click.UsageError("the question is empty: give it with --prompt")
    config = SnapKVConfig(**take_config(options))
    # only now: it needs the packages that compute
    from snapkv_local.inspection import kept, terminal
    from snapkv_local.inspection.page import page
    from snapkv_local.prompt.build import build
    from snapkv_local.report.html import load_template

    if html is not None:
        load_template("snapkv_local.inspection")  # a missing package is found before the work
    path = find_model(model)
    document = "\n\n".join(read_document(file) for file in files)
    llm = load(path, config, loading, must_chat=False)
    if layer is not None:
        kept.row_of(layer, llm.cached_layers())  # so is a layer that is not there
    prompt = build(llm, document, question, raw=not can_chat(llm, loading))
    llm.set_question(prompt.question)
    if config.protect_system:
        llm.set_protected([prompt.system])
    with PrefillBar(llm, "looking at what is kept"):
        survey = kept.take(llm, prompt)
    if html is not None:
        title = ", ".join(file.name for file in files) or "prompt"
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(page(survey, title, question, path.name, layer, n_spans), encoding="utf-8")
        click.echo(f"Wrote {html}", err=True)
    if as_json:
        click.echo(json.dumps({"model": str(path), **survey.to_dict(layer)}))
    else:
        terminal.show(result_console(), survey, layer, n_spans)
