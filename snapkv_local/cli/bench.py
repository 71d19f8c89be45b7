"""`snapkv-local bench`: speed and memory on this machine, and what measurements need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from snapkv_local.bench.shapes import SHAPES
from snapkv_local.cli.console import result_console
from snapkv_local.cli.model import model_choice
from snapkv_local.cli.options import gpu_layers_option, json_option
from snapkv_local.cli.progress import Lines, find_model
from snapkv_local.cli.types import KvType, List, Size, SizeOr, Threads
from snapkv_local.config import SnapKVConfig
from snapkv_local.report.units import size

if TYPE_CHECKING:
    from snapkv_local.bench.matrix import Case


class CommandWithSubcommands(click.Group):
    """A command of its own, unless its first argument names a subcommand."""

    allow_interspersed_args = True

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        if args and args[0] in self.commands:
            command = self.commands[args[0]]
            return command.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    parse_args = click.Command.parse_args
    invoke = click.Command.invoke
    collect_usage_pieces = click.Command.collect_usage_pieces


@click.group(cls=CommandWithSubcommands)
@model_choice()
@click.option(
    "-p",
    "--n-prompt",
    "--prompt-tokens",
    "prompts",
    type=List(Size()),
    default="4k,16k",
    show_default=True,
    help="The lengths of the prompts, in tokens.",
)
@click.option(
    "--budget",
    "budgets",
    type=List(Size()),
    default="1024",
    show_default=True,
    help="How many rows each KV head keeps, in tokens.",
)
@click.option("--full", is_flag=True, help="Measure the full KV cache as well.")
@click.option(
    "--kv-type",
    "kv_types",
    type=List(KvType()),
    default="f16",
    show_default=True,
    help="The types of K and V in the cache.",
)
@gpu_layers_option
@click.option(
    "--layer-group",
    "layer_groups",
    type=List(SizeOr("auto", "layers")),
    default=SnapKVConfig.layer_group,
    show_default=True,
    help="How many layers are evaluated at a time.",
)
@click.option(
    "-ub",
    "--ubatch-size",
    "--ubatch",
    "ubatch",
    type=Size(),
    default=512,
    show_default=True,
    help="How many tokens of the prompt are computed at once.",
)
@click.option(
    "-t", "--threads", type=Threads(), help="The number of threads.  [default: all cores]"
)
@click.option(
    "-n",
    "--n-gen",
    "--decode-tokens",
    "decode_tokens",
    type=Size(),
    default=64,
    show_default=True,
    help="How many tokens are generated after the prompt, and timed.",
)
@click.option(
    "-r",
    "--repetitions",
    "--repeat",
    "repeat",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="How often each case is run.",
)
@click.option("--note", help="What a reader of the record should know about the machine.")
@click.option(
    "--json",
    "out",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    is_flag=False,
    flag_value=Path("-"),
    help="Write the record to this file; without a file, to stdout.",
)
def bench(model: str, out: Path | None, repeat: int, note: str | None, **options: Any) -> None:
    """Measure speed and memory of MODEL on this machine.

    Options that take lists are combined, and each combination is a case. Each run is a process of its
    own: it evaluates a short prompt as a warm-up and a prompt of random tokens, then decodes greedily.
    The table has the medians of the runs, and the record has every run. `snapkv-local compare` puts
    records side by side.
    """
    # only now: NumPy and gguf take a moment, which no other command needs
    from snapkv_local.bench.matrix import Matrix, Model
    from snapkv_local.bench.runner import Machine, measure, start_record
    from snapkv_local.models.gguf_shape import read_shape

    found = Model.read(find_model(model))
    machine = Machine.describe()
    n_gpu_layers = machine.n_gpu_layers(options.pop("gpu_layers"))
    cases = Matrix(
        n_gpu_layers=n_gpu_layers,
        n_threads=options.pop("threads") or 0,
        n_ubatch=options.pop("ubatch"),
        n_decode=options.pop("decode_tokens"),
        **options,
    ).cases(found.path)
    longest = max(case.settings.n_positions for case in cases)
    read_shape(found.path).check_positions(
        f"prompt and answer of {longest} tokens",
        longest,
        "measure shorter ones, of {most} together",
    )
    if longest > found.n_ctx_train:
        click.echo(
            f"Note: the model was trained for {found.n_ctx_train:,} tokens. Speed and memory are "
            "right past them, answers would not be.",
            err=True,
        )
    record = start_record(machine, found, n_gpu_layers, note)
    to_stdout = out == Path("-")
    with Progress(len(cases) * repeat) as progress:
        measure(
            record,
            found,
            cases,
            repeat,
            out=None if to_stdout else out,
            before=progress.before,
            after=progress.after,
        )
    if to_stdout:
        click.echo(json.dumps(record))
    elif record["runs"]:
        from snapkv_local.compare.reader import read
        from snapkv_local.compare.terminal import cases_table

        result_console().print(cases_table([read(record, "this machine")]))
    if record["failures"]:
        raise click.exceptions.Exit(1)


class Progress:
    """A line for each run on stderr, and what runs now."""

    def __init__(self, n_runs: int) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.status = self.console.status("") if self.console.is_terminal else None
        self.n_runs = n_runs
        self.n_done = 0
        self.lines = Lines("measuring")

    def __enter__(self) -> Progress:
        if self.status is not None:
            self.status.start()
        self.lines.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self.status is not None:
            self.status.stop()
        self.lines.close()

    def before(self, case: Case, turn: int) -> None:
        """A run starts."""
        shown = f"{self.n_done} of {self.n_runs} runs, now {case.label}"
        self.lines.update("measuring", self.n_done, self.n_runs, shown)
        if self.status is not None:
            self.status.update(f"{self.n_done + 1} of {self.n_runs}: {case.label}")

    def after(self, case: Case, turn: int, result: dict[str, Any] | None, error: str) -> None:
        """A run ended."""
        self.n_done += 1
        self._say(
            f"{self.n_done}/{self.n_runs} {case.label}, run {turn + 1}: "
            + (f"FAILED: {error}" if result is None else _line(result))
        )

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)


def _line(result: dict[str, Any]) -> str:
    """A run in short."""
    parts = [
        f"first token {result['seconds_first_token']:.2f} s",
        f"decode {result['decode_tokens_per_second'][0]:.1f} tokens/s",
        f"peak RSS {size(result['peak_rss'])}",
    ]
    if result["peak_device"] is not None:
        parts.append(f"device {size(result['peak_device'])}")
    return " · ".join(parts)


@bench.command("make-model")
@click.option(
    "--shape", type=click.Choice(list(SHAPES)), required=True, help="The model whose shape it has."
)
@click.option(
    "--type",
    "kind",
    type=click.Choice(["q4_0", "q8_0", "f16"]),
    default="q4_0",
    show_default=True,
    help="The type of the weights.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="The file to write.  [default: SHAPE-TYPE.gguf]"
)
@click.option(
    "--vocab",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The GGUF file to take the tokenizer from.  [default: one that is made up]",
)
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
@json_option
def make_model(
    shape: str, kind: str, out: Path | None, vocab: Path | None, force: bool, as_json: bool
) -> None:
    """Write a GGUF file of a real shape, with random weights.

    Speed and memory are those of the real model; its answers are noise.
    """
    # only now: gguf's writer and numpy take a moment, which no other command needs
    from snapkv_local.bench import make_model as maker

    out = out or Path(f"{shape}-{kind}.gguf")
    with Lines(f"writing {out}"):
        made = maker.make_model(
            SHAPES[shape],
            kind,
            out,
            name=f"{shape} shape, random weights",
            vocab=vocab,
            force=force,
        )
    if as_json:
        click.echo(json.dumps(made.to_dict()))
    else:
        click.echo(
            f"{made.path}: {made.n_params / 1e9:.2f} billion weights, {size(made.n_bytes)}, "
            f"{made.seconds:.1f} s"
        )
