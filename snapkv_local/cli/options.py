"""Options that commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from snapkv_local import declared, memory, process
from snapkv_local import profile as profiles
from snapkv_local.cli.types import (
    KV_TYPES,
    SIZE,
    ByteSize,
    GpuLayers,
    Number,
    SizeOr,
    Threads,
)
from snapkv_local.config import SnapKVConfig


def together(*options: Callable[..., Any]) -> Callable[..., Any]:
    """Several options as one; --help has them in this order."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout."
)


def files_option(
    says: str = "Text, PDF or DOCX to put before the question; may be repeated, - for stdin.",
    required: bool = False,
) -> Callable[..., Any]:
    """--file, paths of texts; "-" is stdin's. `says` is for --help."""
    return click.option(
        "--file",
        "files",
        multiple=True,
        required=required,
        type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
        help=says,
    )


document_option = click.option(
    "--document",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File of `ingest` to ask about; MODEL may then be left out.",
)

# of loading a model, with cli.run.load()
ctx_option = click.option("--ctx", type=SIZE, help="Longest conversation.  [default: the model's]")
kv_type_option = click.option(
    "--kv-type", type=click.Choice(KV_TYPES), default="f16", show_default=True
)
gpu_layers_option = click.option(
    "--gpu-layers", type=GpuLayers(), default="auto", show_default=True
)
threads_option = click.option("--threads", type=Threads(), help="[default: all cores]")
chat_format_option = click.option(
    "--chat-format", help="For a model without a chat template, such as chatml."
)
no_mmap_option = click.option(
    "--no-mmap",
    is_flag=True,
    help="Read model and documents into memory, instead of mapping their files.",
)


def _begin_to_load(_ctx: click.Context, _param: click.Parameter, verbose: bool) -> None:
    """For --verbose, which all commands have that load a model."""
    memory.require_engine()
    if verbose:
        # a descriptor of its own: llama_cpp points stderr elsewhere while a model is loaded
        process.log = os.dup(2)


verbose_option = click.option(
    "--verbose",
    is_flag=True,
    expose_value=False,
    callback=_begin_to_load,
    help="Show llama.cpp's log on stderr.",
)
model_options = together(
    kv_type_option, gpu_layers_option, threads_option, no_mmap_option, verbose_option
)
answer_options = together(
    click.option("--max-tokens", type=SIZE, default=512, show_default=True, help="Of an answer."),
    click.option("--temperature", type=Number(min=0), default=0.0, show_default=True),
    chat_format_option,
)
full_option = click.option("--full", is_flag=True, help="Keep the full KV cache.")
profile_option = click.option(
    "--profile",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    callback=lambda _ctx, _param, path: None if path is None else profiles.load(path),
    help="Settings that `tune --save` has written; options given here win.",
)


def _choice(setting: str) -> click.Choice[str]:
    """The words that a setting of SnapKVConfig can be."""
    return click.Choice(declared.words(SnapKVConfig, setting))


# of how a prompt is computed, whatever is kept of it
engine_options = together(
    click.option(
        "--layer-group",
        type=SizeOr("auto", "layers"),
        help="Layers evaluated at a time.  [default: auto]",
    ),
    click.option(
        "--hidden",
        type=_choice("hidden"),
        help="Where the hidden state between layer groups lives.  [default: auto]",
    ),
    click.option(
        "--chunk",
        type=SizeOr("auto", "tokens"),
        help="Prompt tokens computed at once.  [default: auto]",
    ),
    click.option(
        "--ops",
        type=_choice("ops"),
        help="What scores and evicts: our ops, or ggml's.  [default: auto]",
    ),
)

# settings of SnapKVConfig; None where they are not given
config_options = together(
    click.option(
        "--budget", type=SIZE, help="Rows kept for each KV head, in tokens.  [default: 2048]"
    ),
    click.option("--ratio", type=float, help="Share of the prompt to keep instead, in (0, 1]."),
    click.option(
        "--window", type=SIZE, help="Tokens at the prompt's end that always stay.  [default: 32]"
    ),
    click.option(
        "--voters",
        type=SizeOr("question", "tokens"),
        help="How many of these vote, or question: in a chat its words do, else 16.  "
        "[default: question]",
    ),
    click.option("--kernel", type=int, help="Pooling kernel, odd.  [default: 21]"),
    click.option(
        "--pool",
        type=_choice("pool"),
        help="Of the kernel's votes the mean, the largest, or the mean of the others.  "
        "[default: trim]",
    ),
    click.option("--reduce", type=_choice("reduce"), help="[default: max]"),
    click.option(
        "--own",
        type=float,
        help="What a row's own vote counts beside the pooled ones, from 0.  [default: 0.25]",
    ),
    click.option("--sinks", type=int, help="First tokens that always stay.  [default: 0]"),
    click.option(
        "--min-coverage",
        type=float,
        help="Keep more rows where the budget's hold less of the attention mass, such as 0.95.",
    ),
    click.option(
        "--max-budget",
        type=SIZE,
        help="Most rows with --min-coverage.  [default: four times the budget]",
    ),
    click.option(
        "--room",
        type=SIZE,
        help="Cells for tokens after the prompt.  [default: 1024; for one answer --max-tokens, if less]",
    ),
    engine_options,
    click.option(
        "--vault",
        metavar="off|ram|FOLDER",
        help="Keep the prompt's full KV in host memory or in a file, for later questions.  "
        "[default: off]",
    ),
    click.option(
        "--vault-limit", type=ByteSize(), help="Most that the vault may take, such as 8GiB."
    ),
)

# the same, of commands that prefill: which rows stay
choice_options = together(
    click.option(
        "--policy",
        help="What chooses the rows: NAME or NAME:OPTION=VALUE+...; all but snapkv run in Python.  "
        "[default: snapkv]",
    ),
    click.option(
        "--protect-system",
        is_flag=True,
        default=None,
        help="The system prompt's rows always stay.",
    ),
)

# of commands that answer: ask, run and serve
settings_options = together(config_options, choice_options, profile_option)

CONFIG_NAMES = tuple(SnapKVConfig.__dataclass_fields__)


def take_config(options: dict[str, Any]) -> dict[str, Any]:
    """The settings that were given, taken out of a command's options."""
    given = {name: options.pop(name) for name in CONFIG_NAMES if name in options}
    return {name: value for name, value in given.items() if value is not None}


def take_settings(
    options: dict[str, Any], profile: profiles.Profile | None = None
) -> dict[str, Any] | None:
    """As take_config(), over those of a profile; None with --full.

    Raises:
        click.UsageError: --full with a setting of compression, or with a profile.
    """
    settings = take_config(options)
    if not options["full"]:
        return settings if profile is None else profiles.merge(profile.settings, settings)
    if settings or profile is not None:
        name = next(iter(settings)).replace("_", "-") if settings else "profile"
        raise click.UsageError(f"--full keeps everything: leave out --{name}")
    return None


def size_room(settings: dict[str, Any] | None, max_tokens: int) -> None:
    """For a command that answers each question by itself: room for its answer, if none was asked for.

    No more than the usual room: a longer answer evicts rows on its way, as it does in a chat.
    """
    if settings is not None:
        settings.setdefault("room", min(max_tokens, SnapKVConfig.room))


def warn_of_other_model(profile: profiles.Profile | None, model: Path) -> None:
    """Say on stderr that a profile was measured with another model."""
    warning = None if profile is None else profile.other_model(model)
    if warning is not None:
        click.echo(f"Warning: {warning}", err=True)
