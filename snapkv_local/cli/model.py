"""MODEL and the types of its cache, under llama.cpp's names too; llama.cpp's options that we refuse."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from snapkv_local.cli.types import KV_TYPES
from snapkv_local.llama.load_options import KV_TYPE, split_kv_type

SYSTEM_BEFORE_DOCUMENT = (
    "the rows of a document were computed with nothing before it; say it in the question"
)


def together(*options: Callable[..., Any]) -> Callable[..., Any]:
    """Several options as one; --help has them in this order."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def refused(*names: str, why: str) -> Callable[..., Any]:
    """An option of llama.cpp that we do not have; --help does not show it. `why` ends with a cure."""

    def refuse(_ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
        if value is not None:
            raise click.UsageError(f"{names[-1]} {value}: {why}")

    return click.option(*names, hidden=True, expose_value=False, callback=refuse)


_refused_options = together(
    refused(
        "-mmu",
        "--mmproj-url",
        "-mm",
        "--mmproj",
        why="images and sound are not read, only text; leave it out",
    ),
    refused("-fa", "--flash-attn", why="flash attention is always on; leave it out"),
)


def model_choice(
    argument: bool = True, required: bool = True, says: str = "The same as the argument."
) -> Callable[..., Any]:
    """MODEL as the argument, or as llama.cpp has it: -m FILE, or -hf OWNER/REPO. One of them.

    The command gets it as `model`, None if there is none and none is required.
    """
    ways = "with --model, or with -hf"
    ways = f"as the argument, {ways}" if argument else ways

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_model(
            *args: Any,
            model_option: str | None,
            hf_repo: str | None,
            model: str | None = None,
            **options: Any,
        ) -> Any:
            hub = None if hf_repo is None else f"hf:{hf_repo.removeprefix('hf:')}"
            given = [name for name in (model, model_option, hub) if name is not None]
            if len(given) > 1 or (required and not given):
                raise click.UsageError(f"name one MODEL: {ways}")
            return command(*args, model=given[0] if given else None, **options)

        options = [
            click.option("-m", "--model", "model_option", metavar="MODEL", help=says),
            click.option(
                "-hf",
                "--hf-repo",
                "hf_repo",
                metavar="OWNER/REPO[:QUANT]",
                help="The same as hf:OWNER/REPO[:QUANT] for MODEL.",
            ),
            _refused_options,
        ]
        if argument:
            # "[MODEL]" in the usage where it may be left out
            metavar = "MODEL" if required else None
            options.insert(0, click.argument("model", required=False, metavar=metavar))
        done: Callable[..., Any] = together(*options)(with_model)
        return done

    return add


def kv_type_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--kv-type for K and V, or one option for each.

    The command gets kv_type: "q8_0", or "q8_0/f16", and None if the person gives none of them.
    """

    @functools.wraps(command)
    def with_kv_type(
        *args: Any,
        kv_type: str | None,
        cache_type_k: str | None,
        cache_type_v: str | None,
        **options: Any,
    ) -> Any:
        if cache_type_k or cache_type_v:
            if kv_type is not None:
                raise click.UsageError(
                    "--kv-type is for both K and V: give it, or --cache-type-k and --cache-type-v"
                )
            k, v = cache_type_k or KV_TYPE, cache_type_v or KV_TYPE
            kv_type = k if k == v else f"{k}/{v}"
        return command(*args, kv_type=kv_type, **options)

    types, default = click.Choice(KV_TYPES), f"[default: {KV_TYPE}]"
    add = together(
        click.option("--kv-type", type=types, help=f"The type of K and V in the cache.  {default}"),
        click.option(
            "-ctk", "--cache-type-k", "cache_type_k", type=types, help=f"The type of K.  {default}"
        ),
        click.option(
            "-ctv", "--cache-type-v", "cache_type_v", type=types, help=f"The type of V.  {default}"
        ),
    )
    done: Callable[..., Any] = add(with_kv_type)
    return done


def kv_type_words(kv_type: str) -> str:
    """How a person asks for it."""
    k, v = split_kv_type(kv_type)
    return f"--kv-type {k}" if k == v else f"-ctk {k} -ctv {v}"
