"""The LoRA adapter of a model, under llama.cpp's names."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from snapkv_local.cli.model import together
from snapkv_local.cli.types import Scaled
from snapkv_local.llama.load_options import Adapter


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
