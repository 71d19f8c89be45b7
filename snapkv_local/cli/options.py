"""Options that commands share."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from snapkv_local import declared, memory, process
from snapkv_local import profile as profiles
from snapkv_local.cli.adapter import lora_options
from snapkv_local.cli.model import kv_type_option, together
from snapkv_local.cli.types import (
    SIZE,
    ByteSize,
    Context,
    GpuLayers,
    Shares,
    SizeOr,
    Threads,
)
from snapkv_local.config import MOST_BUDGETS, SnapKVConfig
from snapkv_local.errors import option_of
from snapkv_local.llama.load_options import LoadOptions
from snapkv_local.policies.snapkv_paper import DEFAULT_VOTERS

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout."
)


def files_option(
    says: str = "A text, PDF or DOCX to put before the question; may be repeated, and - is stdin.",
    required: bool = False,
) -> Callable[..., Any]:
    """--file, paths of texts; "-" is stdin's. `says` is for --help."""
    return click.option(
        "-f",
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
    help="A file that `ingest` has made, to ask about; MODEL may then be left out.",
)

# of loading a model: gather_loading() makes one of them
ctx_option = click.option(
    "-c",
    "--ctx-size",
    "--ctx",
    "ctx",
    type=Context(),
    help="The longest conversation, in tokens.  [default: the model's]",
)
gpu_layers_option = click.option(
    "-ngl",
    "--gpu-layers",
    "--n-gpu-layers",
    "gpu_layers",
    type=GpuLayers(),
    default="auto",
    show_default=True,
    help="How many layers go to the GPU; auto puts all there if there is one.",
)
main_gpu_option = click.option(
    "-mg",
    "--main-gpu",
    type=click.IntRange(0, 999),
    help="The number of the GPU that computes alone.  [default: all share the layers]",
)
tensor_split_option = click.option(
    "-ts",
    "--tensor-split",
    type=Shares(),
    help="The shares of several GPUs, such as 3,1.  [default: by free memory]",
)
gpu_options = together(gpu_layers_option, main_gpu_option, tensor_split_option)
threads_option = click.option(
    "-t", "--threads", type=Threads(), help="The number of threads.  [default: all cores]"
)
chat_format_option = click.option(
    "--chat-format", help="The chat format of a model without a template, such as chatml."
)
no_mmap_option = click.option(
    "--no-mmap",
    is_flag=True,
    help="Read the model and documents into memory, instead of mapping their files.",
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
    kv_type_option, gpu_options, threads_option, no_mmap_option, lora_options, verbose_option
)


def gather_loading(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of loading that a command has, whichever these are, as one: `loading`."""

    @functools.wraps(command)
    def with_loading(*args: Any, **options: Any) -> Any:
        names = [field.name for field in dataclasses.fields(LoadOptions) if field.name in options]
        loading = LoadOptions(**{name: options.pop(name) for name in names})
        return command(*args, loading=loading, **options)

    return with_loading


_DEFAULTS = SnapKVConfig()

full_option = click.option("--full", is_flag=True, help="Keep the full KV cache.")
profile_option = click.option(
    "--profile",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    callback=lambda _ctx, _param, path: None if path is None else profiles.load(path),
    help="Take settings from a file that `tune --save` has written; options on the command line win.",
)


def setting(
    *names: str, says: str = "", default: str = "", **attributes: Any
) -> Callable[..., Any]:
    """The option of a setting of SnapKVConfig, None where it is not given.

    Args:
        names: of the option; the last one is the setting's, without dashes where it is no option.
        says: for --help.
        default: in words, for a setting whose value does not say it.
        attributes: as for click.option().
    """
    *options, last = names
    name = last.removeprefix("--").replace("-", "_")
    if last != name:
        options.append(last)
    value = getattr(_DEFAULTS, name)
    shown = default or (f"{value:g}" if isinstance(value, float) else value)
    if shown is not None and not attributes.get("is_flag"):
        says = f"{says}  [default: {shown}]".strip()
    return click.option(*options, name, help=says, default=None, **attributes)


def _choices(name: str) -> click.Choice[str]:
    """The words that a setting of SnapKVConfig can be."""
    return click.Choice(declared.words(SnapKVConfig, name))


# of how a prompt is computed, whatever is kept of it
engine_options = together(
    setting(
        "--layer-group",
        type=SizeOr("auto", "layers"),
        says="How many layers are evaluated at a time.",
    ),
    setting(
        "--hidden-state",
        type=_choices("hidden_state"),
        says="Where the hidden state lives between layer groups.",
    ),
    setting(
        "-ub",
        "--ubatch-size",
        "n_ubatch",
        type=SizeOr("auto", "tokens"),
        says="How many tokens of the prompt are computed at once.",
    ),
    setting(
        "--ops",
        type=_choices("ops"),
        says="Which ops score and evict rows: our fused ones, or those of ggml.",
    ),
)

# settings of SnapKVConfig
config_options = together(
    setting("--budget", type=SIZE, says="How many rows each KV head keeps, in tokens."),
    setting("--keep-ratio", type=float, says="Keep this share of the prompt instead."),
    setting("--window-size", type=SIZE, says="How many tokens at the prompt's end always stay."),
    setting(
        "--observation",
        type=SizeOr("question", "tokens"),
        says="Which of these vote: with question, the words of a chat's question, and elsewhere the last "
        f"{DEFAULT_VOTERS} tokens; with a number, so many of the last.",
    ),
    setting(
        "--kernel-size", type=int, says="How many neighbouring positions are pooled, an odd number."
    ),
    setting(
        "--pooling",
        type=_choices("pooling"),
        says="What a row gets of its neighbours' votes: their mean, the largest, or their mean without the "
        "vote for the prompt's first token (nosink).",
    ),
    setting(
        "--aggregation",
        type=_choices("aggregation"),
        says="How the votes of several tokens for a row are joined: as their sum, or as the largest.",
    ),
    setting(
        "--self-weight",
        type=float,
        says="How much a row's own vote counts beside the pooled one.",
    ),
    setting("--n-sink", type=int, says="How many tokens at the prompt's beginning always stay."),
    setting(
        "--min-coverage",
        type=float,
        says="Keep more rows where those of the budget hold less than this share of the attention, such as "
        "0.95.",
    ),
    setting(
        "--max-budget",
        type=SIZE,
        says="The most rows that --min-coverage may keep.",
        default=f"{MOST_BUDGETS} times the budget",
    ),
    setting(
        "--decode-cells",
        type=SIZE,
        says="How many cells there are for tokens after the prompt.",
        default=f"{SnapKVConfig.decode_cells}; for one answer --max-tokens, if less",
    ),
    engine_options,
    setting(
        "--prefill",
        type=_choices("prefill"),
        says="What goes through all layers: all rows, or, faster and not exact, those that a look ahead at "
        "later layers ranks highest.",
    ),
    setting(
        "--select-share",
        type=float,
        says="With a selective prefill, the share of the prompt's rows that go on.",
    ),
    setting("--select-min", type=SIZE, says="How many rows go on at least."),
    setting(
        "--select-depth",
        type=float,
        says="The share of the layers that all rows go through at least.",
    ),
    setting(
        "--select-settled",
        type=float,
        says="Rows go on once a second look ahead gives them this share of its votes; 0 takes one look.",
    ),
    setting(
        "--vault",
        metavar="off|ram|FOLDER",
        says="Keep the prompt's full KV in host memory or in a file, for later questions.",
    ),
    setting(
        "--vault-limit", type=ByteSize(), says="The most that the vault may take, such as 8GiB."
    ),
    setting(
        "--recall",
        is_flag=True,
        says="While an answer is written, take rows of the vault in that its tokens attend to; not exact.",
    ),
    setting(
        "--recall-every",
        type=SizeOr("auto", "tokens"),
        says="After how many tokens of an answer rows are recalled; auto: 16, and more with a GPU.",
    ),
    setting("--recall-queries", type=SIZE, says="How many of the last ones vote for them."),
    setting(
        "--recall-rows",
        type=SIZE,
        says="How many rows of each KV head they are compared with one by one; 0 for all.",
    ),
    setting(
        "--recall-delay",
        type=SizeOr("auto", "tokens"),
        says="How many tokens of the answer lie between their votes and the rows; 0 has the answer wait.",
    ),
    setting(
        "--recall-margin",
        type=float,
        says="How many times as much as a kept row another must be worth to take its place.",
    ),
)

# the same, of commands that prefill: which rows stay
choice_options = together(
    setting(
        "--policy",
        says="What chooses the rows, as NAME or NAME:OPTION=VALUE+...; all but snapkv run in Python.",
    ),
    setting("--protect-system", is_flag=True, says="Keep all rows of the system prompt."),
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
        option = option_of(next(iter(settings), "profile"))
        raise click.UsageError(f"--full keeps everything: leave out {option}")
    return None


def size_decode_cells(settings: dict[str, Any] | None, max_tokens: int) -> None:
    """For a command that answers each question by itself: room for its answer, if none was asked for.

    No more than the usual room: a longer answer evicts rows on its way, as it does in a chat.

    Args:
        max_tokens: 0 for no limit.
    """
    if settings is not None:
        settings.setdefault(
            "decode_cells", min(max_tokens or SnapKVConfig.decode_cells, SnapKVConfig.decode_cells)
        )


def warn_of_other_model(profile: profiles.Profile | None, model: Path) -> None:
    """Say on stderr that a profile was measured with another model."""
    warning = None if profile is None else profile.other_model(model)
    if warning is not None:
        click.echo(f"Warning: {warning}", err=True)
