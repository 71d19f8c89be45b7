"""`snapkv-local bench`: what measurements need."""

from __future__ import annotations

import json
from pathlib import Path

import click

from snapkv_local.bench.shapes import SHAPES
from snapkv_local.cli.answer import size
from snapkv_local.cli.options import json_option


@click.group()
def bench() -> None:
    """Measure speed and memory."""


@bench.command("make-model")
@click.option("--shape", type=click.Choice(list(SHAPES)), required=True, help="Of which model.")
@click.option(
    "--type", "kind", type=click.Choice(["q4_0", "q8_0", "f16"]), default="q4_0", show_default=True
)
@click.option("--out", type=click.Path(path_type=Path), help="[default: SHAPE-TYPE.gguf]")
@click.option(
    "--vocab",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="GGUF file to take the tokenizer from.  [default: one that is made up]",
)
@click.option("--force", is_flag=True, help="Overwrite a file that exists.")
@json_option
def make_model(
    shape: str, kind: str, out: Path | None, vocab: Path | None, force: bool, as_json: bool
) -> None:
    """Write a GGUF file with a real model's shape and random weights.

    Speed and memory are those of the real model; what it says is noise.
    """
    # only now: gguf's writer and numpy take a moment, which no other command needs
    from snapkv_local.bench import make_model as maker

    out = out or Path(f"{shape}-{kind}.gguf")
    made = maker.make_model(
        SHAPES[shape], kind, out, name=f"{shape} shape, random weights", vocab=vocab, force=force
    )
    if as_json:
        click.echo(json.dumps(made.to_dict()))
    else:
        click.echo(
            f"{made.path}: {made.n_params / 1e9:.2f} billion weights, {size(made.n_bytes)}, "
            f"{made.seconds:.1f} s"
        )
