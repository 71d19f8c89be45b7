"""--chat-format, and --chat-template in the place of the model's own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from snapkv_local.cli.model import together
from snapkv_local.cli.options import chat_format_option
from snapkv_local.reading.text import decode

_options = together(
    chat_format_option,
    click.option(
        "--chat-template",
        metavar="JINJA|NAME",
        help="Write chats with this template in the place of the model's own; a name is one of llama.cpp's, "
        "such as llama3.",
    ),
    click.option(
        "--chat-template-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="The same, from a file.",
    ),
)


def chat_template_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command gets chat_format and chat_template, of which one is None; gather_loading() takes them."""

    @functools.wraps(command)
    def with_template(
        *args: Any,
        chat_format: str | None,
        chat_template: str | None,
        chat_template_file: Path | None,
        **options: Any,
    ) -> Any:
        given = {
            "--chat-format": chat_format,
            "--chat-template": chat_template,
            "--chat-template-file": chat_template_file,
        }
        names = [name for name, value in given.items() if value is not None]
        if len(names) > 1:
            raise click.UsageError(
                f"{names[0]} and {names[1]} both say how chats are written: give one"
            )
        if chat_template_file is not None:
            chat_template = decode(chat_template_file.read_bytes(), str(chat_template_file))
        return command(*args, chat_format=chat_format, chat_template=chat_template, **options)

    done: Callable[..., Any] = _options(with_template)
    return done
