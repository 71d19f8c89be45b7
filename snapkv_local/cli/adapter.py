"""The LoRA adapter of a model, under llama.cpp's names."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from snapkv_local.cli.model import together
from snapkv_local.llama.load_options import Adapter


# generic from click 8.4 on, and not subscriptable before
class Scaled(click.ParamType):  # type: ignore[type-arg]
    """An adapter with a scale: FILE:SCALE, as in llama.cpp."""

    name = "file:scale"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, Adapter):
            return value
        file, _, said = str(value).rpartition(":")
        try:
            scale = float(said)
        except ValueError:
            scale = math.nan
        if not file or not math.isfinite(scale):
            self.fail(f"{value!r} is not FILE:SCALE; write one, as in adapter.gguf:0.5", param, ctx)
        return Adapter(Path(file), scale)


def lora_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--lora, or --lora-scaled. The command gets `adapter`, None if the person gives neither."""

    @functools.wraps(command)
    def with_adapter(
        *args: Any, lora: tuple[Path, ...], lora_scaled: tuple[Adapter, ...], **options: Any
    ) -> Any:
        found = [*(Adapter(path) for path in lora), *lora_scaled]
        if len(found) > 1:
            raise click.UsageError(
                "one LoRA adapter can be loaded: merge others into the model with llama-export-lora"
            )
        return command(*args, adapter=found[0] if found else None, **options)

    add = together(
        click.option(
            "--lora",
            multiple=True,
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="A LoRA adapter of the model, a GGUF file.",
        ),
        click.option(
            "--lora-scaled", multiple=True, type=Scaled(), help="The same, weakened or amplified."
        ),
    )
    done: Callable[..., Any] = add(with_adapter)
    return done
