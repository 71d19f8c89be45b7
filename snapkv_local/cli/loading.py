"""What commands share that load a model and ask it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from snapkv_local import foreign
from snapkv_local.cli.answer import Answer, Message, ask
from snapkv_local.cli.progress import Lines, PrefillBar
from snapkv_local.cli.sampling import Sampling
from snapkv_local.config import SnapKVConfig
from snapkv_local.errors import ModelFileError, SnapKVError
from snapkv_local.llama.load_options import LoadOptions
from snapkv_local.reading.text import read_text

if TYPE_CHECKING:
    from snapkv_local.llama.llama import Llama


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


def load(
    path: Path,
    config: SnapKVConfig | None,
    options: LoadOptions,
    *,
    keep_scores: bool = False,
    must_chat: bool = True,
    n_parallel: int = 1,
) -> Llama:
    """Load a model.

    Args:
        keep_scores: as for Llama.
        must_chat: refuse a model that can_chat() is false for.
        n_parallel: as for Llama.
    """
    # only now: it loads the native library
    from snapkv_local.llama.llama import Llama

    arguments = options.arguments()
    with Lines("loading the model"):
        llm = Llama(
            str(path), snapkv=config, keep_scores=keep_scores, n_parallel=n_parallel, **arguments
        )
    if llm.chat_format not in foreign.chat_formats(llm):
        raise foreign.from_chat_format(llm)
    if options.chat_template is not None:
        llm.set_chat_template(options.chat_template)
    n_train = llm._model.n_ctx_train()
    if options.ctx is not None and options.ctx > n_train:
        click.echo(
            f"Warning: --ctx {options.ctx:,} is more than the {n_train:,} tokens that the model "
            "was trained for: what it says of longer prompts is not to be relied on",
            err=True,
        )
    if must_chat and not can_chat(llm, options):
        raise ModelFileError(
            str(path),
            "has no chat template, so it was not trained to answer questions",
            "use an instruct model, or name the format with --chat-format",
        )
    if options.drafts is not None:
        with Lines("loading the draft model"):
            options.give_drafts(llm, config)
    return llm


def can_chat(llm: Llama, options: LoadOptions) -> bool:
    """Whether the file or --chat-format says how a chat is written for the model."""
    return options.chat_format is not None or "tokenizer.chat_template" in llm.metadata


def answer_one(
    llm: Llama, messages: list[Message], max_tokens: int, sampling: Sampling, stream: bool
) -> Answer:
    """Stream one answer to stdout, and its figures to stderr; max_tokens 0 is no limit."""
    streamed: list[str] = []
    with PrefillBar(llm) as bar:

        def on_text(piece: str) -> None:
            if stream:
                bar.close()
                click.echo(piece, nl=False)
                streamed.append(piece)
            else:
                bar.said(max_tokens or llm.n_ctx())

        try:
            answer = ask(llm, messages, max_tokens=max_tokens, sampling=sampling, on_text=on_text)
        except (SnapKVError, MemoryError):
            if streamed:
                click.echo()  # the error is a line of its own
            raise
    if stream:
        click.echo()
    click.echo(answer.line(), err=True)
    return answer
