"""`snapkv-local ingest`: read a document once, for all questions to come."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from snapkv_local.cli.adapter import lora_options
from snapkv_local.cli.document import describe
from snapkv_local.cli.loading import load, read_document
from snapkv_local.cli.model import kv_type_option, model_choice
from snapkv_local.cli.options import (
    chat_format_option,
    ctx_option,
    engine_options,
    files_option,
    gather_loading,
    gpu_options,
    json_option,
    no_mmap_option,
    take_config,
    threads_option,
    verbose_option,
)
from snapkv_local.cli.progress import PrefillBar, find_model
from snapkv_local.config import SnapKVConfig
from snapkv_local.hardware import peak_rss
from snapkv_local.llama.load_options import LoadOptions
from snapkv_local.reading.text import STDIN
from snapkv_local.report.units import size
from snapkv_local.storage.new_file import check_space


@click.command()
@model_choice()
@files_option("The text, PDF or DOCX to read; may be repeated, and - is stdin.", required=True)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="The file to write, such as book.snapkv.",
)
@click.option(
    "--title", help="The document's title, for people.  [default: the name of the first --file]"
)
@click.option("--force", is_flag=True, help="Replace --out if it is there.")
@ctx_option
@kv_type_option
@engine_options
@click.option(
    "--vault",
    metavar="ram|FOLDER",
    help="Where K and V wait until all is read: in host memory, or in a file.  [default: ram]",
)
@gpu_options
@threads_option
@no_mmap_option
@lora_options
@verbose_option
@chat_format_option
@json_option
@gather_loading
def ingest(
    model: str,
    files: tuple[Path, ...],
    out: Path,
    title: str | None,
    force: bool,
    loading: LoadOptions,
    as_json: bool,
    **options: Any,
) -> None:
    """Let MODEL read a document once, to ask about it later.

    The file that it writes has the text, its tokens, and K and V of all layers. `ask`, `run --document`
    and `serve --document` then answer without reading the text again, and choose rows for each
    question. The file fits this model and this --kv-type only.
    """
    if out.exists() and not force:
        raise click.UsageError(f"{out} is there already: --force replaces it")
    check_space(out, 0)  # a wrong place is said now and not after the model is loaded
    path = find_model(model)
    text = "\n\n".join(read_document(file) for file in files)
    if title is None:
        title = "stdin" if files[0] == STDIN else files[0].name

    llm = load(path, SnapKVConfig(**{"vault": "ram", **take_config(options)}), loading)
    started = time.monotonic()
    with PrefillBar(llm, "writing the document"):
        document = llm.ingest(text, out, title=title)
    seconds = time.monotonic() - started
    if as_json:
        about = describe(document)
        click.echo(json.dumps({**about, "seconds": seconds, "peak_rss": peak_rss()}))
    else:
        click.echo(
            f"{out}: {len(document.tokens):,} tokens, {size(document.n_bytes)}, in {seconds:.1f} s"
        )
