"""`snapkv-local run`: ask a model about documents, or chat with it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from snapkv_local import foreign, hardware
from snapkv_local.cli.answer import Answer, Message, ask
from snapkv_local.cli.document import model_of, open_document, take_document_settings, use_document
from snapkv_local.cli.options import (
    answer_options,
    ctx_option,
    document_option,
    files_option,
    full_option,
    json_option,
    model_options,
    settings_options,
    size_room,
    take_settings,
    warn_of_other_model,
)
from snapkv_local.cli.progress import Lines, PrefillBar, find_model
from snapkv_local.config import SnapKVConfig
from snapkv_local.errors import ModelFileError, SnapKVError, TextFileError
from snapkv_local.profile import Profile
from snapkv_local.reading import STDIN, read_text

if TYPE_CHECKING:
    from snapkv_local.llama import Llama


@click.command()
@click.argument("model", required=False)
@click.option("--model", "model_option", metavar="MODEL", help="The same as the argument.")
@ctx_option
@files_option()
@document_option
@click.option("--prompt", help="The question; without it stdin is read, or a chat opens.")
@settings_options
@model_options
@answer_options
@full_option
@json_option
def run(
    model: str | None,
    model_option: str | None,
    files: tuple[Path, ...],
    document: Path | None,
    prompt: str | None,
    max_tokens: int,
    temperature: float,
    profile: Profile | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Ask MODEL a question about documents, or chat with it.

    --document is what `ingest` has made of one; files come after it, and are read once. The answer
    is streamed to stdout, figures go to stderr.
    """
    name = model or model_option
    if (name is None and document is None) or (model is not None and model_option is not None):
        raise click.UsageError("name one MODEL, as the argument or with --model")
    chats = prompt is None and sys.stdin.isatty() and STDIN not in files
    if chats and as_json:
        raise click.UsageError("--json answers one question: give --prompt")
    take = take_settings if document is None else take_document_settings
    settings = take(options, profile)
    if not chats:
        size_room(settings, max_tokens)

    opened = None if document is None else open_document(document, options)
    path = model_of(opened) if opened and name is None else find_model(name or "")
    warn_of_other_model(profile, path)
    if STDIN in files and prompt is None:
        raise click.UsageError("--file - reads stdin: give the question with --prompt")
    texts = [*([opened.text] if opened else []), *(read_document(file) for file in files)]
    if prompt is None and not chats:
        prompt = read_question()
    if prompt is not None and not prompt.strip():
        raise click.UsageError("the question is empty: give it with --prompt")

    llm = load(path, None if settings is None else SnapKVConfig(**settings), options)
    if opened is not None:
        use_document(llm, opened)
    messages: list[Message] = []
    for question in [prompt] if prompt is not None else questions():
        messages.append({"role": "user", "content": "\n\n".join([*texts, question])})
        texts = []
        answer = answer_one(llm, messages, max_tokens, temperature, stream=not as_json)
        messages.append({"role": "assistant", "content": answer.text})
        if as_json:
            click.echo(
                json.dumps({"model": str(path), "full": options["full"], **answer.to_dict()})
            )


def read_document(file: Path) -> str:
    """Text of a file, or of stdin for "-", without white space around it; lines end with \\n.

    Raises:
        TextFileError: as reading.read_text().
    """
    text = read_exactly(file)
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def read_exactly(file: Path) -> str:
    """As reading.read_text(); what little could not be read is said on stderr."""
    return read_text(file, lambda warning: click.echo(f"Warning: {warning}", err=True))


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


def load(
    path: Path,
    config: SnapKVConfig | None,
    options: dict[str, Any],
    *,
    keep_scores: bool = False,
    must_chat: bool = True,
) -> Llama:
    """Load a model as the options of `run` ask for.

    Args:
        keep_scores: as for Llama.
        must_chat: refuse a model that can_chat() is false for.
    """
    # only now: it loads the native library
    from snapkv_local.llama import Llama  # isort: skip

    import llama_cpp

    from snapkv_local import native

    kv_type = native.ggml_type(options["kv_type"])
    threads = options["threads"] or hardware.n_cores()
    gpu_layers = options["gpu_layers"]
    if gpu_layers == "auto":
        gpu_layers = "all" if llama_cpp.llama_supports_gpu_offload() else 0
    with Lines("loading the model"):
        llm = Llama(
            str(path),
            snapkv=config,
            n_ctx=options["ctx"] or 0,
            n_threads=threads,
            n_threads_batch=threads,
            n_gpu_layers=-1 if gpu_layers == "all" else gpu_layers,
            type_k=kv_type,
            type_v=kv_type,
            flash_attn=True,
            use_mmap=not options["no_mmap"],
            chat_format=options["chat_format"],
            logits_all=options.get("logits_all", False),
            keep_scores=keep_scores,
            verbose=False,
        )
    if llm.chat_format not in foreign.chat_formats(llm):
        raise foreign.from_chat_format(llm)
    n_train = llm._model.n_ctx_train()
    if (options["ctx"] or 0) > n_train:
        click.echo(
            f"Warning: --ctx {options['ctx']:,} is more than the {n_train:,} tokens that the model "
            "was trained for: what it says of longer prompts is not to be relied on",
            err=True,
        )
    if must_chat and not can_chat(llm, options):
        raise ModelFileError(
            str(path),
            "has no chat template, so it was not trained to answer questions",
            "use an instruct model, or name the format with --chat-format",
        )
    return llm


def can_chat(llm: Llama, options: dict[str, Any]) -> bool:
    """Whether the file or --chat-format says how a chat is written for the model."""
    return options["chat_format"] is not None or "tokenizer.chat_template" in llm.metadata


def answer_one(
    llm: Llama, messages: list[Message], max_tokens: int, temperature: float, stream: bool
) -> Answer:
    """Stream one answer to stdout, and its figures to stderr."""
    streamed: list[str] = []
    with PrefillBar(llm) as bar:

        def on_text(piece: str) -> None:
            if stream:
                bar.close()
                click.echo(piece, nl=False)
                streamed.append(piece)
            else:
                bar.said(max_tokens)

        try:
            answer = ask(
                llm, messages, max_tokens=max_tokens, temperature=temperature, on_text=on_text
            )
        except (SnapKVError, MemoryError):
            if streamed:
                click.echo()  # the error is a line of its own
            raise
    if stream:
        click.echo()
    click.echo(answer.line(), err=True)
    return answer
