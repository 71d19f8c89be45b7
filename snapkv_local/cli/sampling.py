"""How the tokens of an answer are drawn: options under llama.cpp's names."""

from __future__ import annotations

import dataclasses
import functools
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click
from click.core import ParameterSource

from snapkv_local.cli.model import together
from snapkv_local.cli.types import Limit, Number

_SEEDS = 2**32 - 1  # llama.cpp takes the last one, as -1, for "any"

# with these the most likely token stays the most likely
_WITHOUT_EFFECT_AT_0 = ("top_k", "top_p", "min_p", "seed")


@dataclass(frozen=True)
class Sampling:
    """Arguments of create_chat_completion(). Defaults are llama.cpp's, but for the temperature's.

    Attributes:
        temperature: 0 always takes the most likely token, so that an answer can be had again.
            llama.cpp's is 0.8.
        top_k: tokens to draw from, the likeliest; 0 for all.
        top_p: the likeliest tokens that have this share of the probability together; 1 for all.
        min_p: tokens at least so likely, as a share of the likeliest one's probability; 0 for all.
        repeat_penalty: divides the logits of the answer's last 64 tokens; 1 for none.
        seed: -1 for another one each time.
    """

    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int = -1

    def arguments(self) -> dict[str, Any]:
        """For create_chat_completion(), with a seed that is one."""
        seed = secrets.randbelow(_SEEDS) if self.seed in (-1, _SEEDS) else self.seed
        return {**dataclasses.asdict(self), "seed": seed}


def sampling_options(temperature: float = Sampling.temperature) -> Callable[..., Any]:
    """How tokens are drawn; the command gets sampling.

    Args:
        temperature: the default.
    """

    def option(*names: str, kind: click.ParamType, says: str) -> Callable[..., Any]:  # type: ignore[type-arg]
        name = names[-1].removeprefix("--").replace("-", "_")
        default = {"temperature": temperature}.get(name, getattr(Sampling, name))
        return click.option(*names, name, type=kind, default=default, show_default=True, help=says)

    options = together(
        option(
            "--temp",
            "--temperature",
            kind=Number(min=0),
            says="At 0 the most likely token is always taken; llama.cpp's default is 0.8.",
        ),
        option(
            "--top-k",
            kind=click.IntRange(0),
            says="Draw from so many of the likeliest tokens; 0 draws from all.",
        ),
        option(
            "--top-p",
            kind=Number(min=0, max=1),
            says="Draw from the likeliest tokens with this share of the probability; 1 draws from all.",
        ),
        option(
            "--min-p",
            kind=Number(min=0, max=1),
            says="Draw from tokens with this share of the likeliest one's probability; 0 draws from all.",
        ),
        option(
            "--repeat-penalty",
            kind=Number(min=0, min_open=True),
            says="Make the last 64 tokens less likely; 1 changes nothing.",
        ),
        option(
            "-s",
            "--seed",
            kind=click.IntRange(-1, _SEEDS),
            says="The seed for drawing tokens; -1 takes another one each time.",
        ),
    )

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_sampling(*args: Any, **given: Any) -> Any:
            names = [field.name for field in dataclasses.fields(Sampling)]
            sampling = Sampling(**{name: given.pop(name) for name in names})
            return command(*args, sampling=sampling, **given)

        done: Callable[..., Any] = options(with_sampling)
        return done

    return add


def answer_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Of one answer; the command gets max_tokens, 0 for no limit, and sampling."""

    @functools.wraps(command)
    def warned(*args: Any, sampling: Sampling, **options: Any) -> Any:
        _warn_without_effect(sampling)
        return command(*args, sampling=sampling, **options)

    most = click.option(
        "-n",
        "--predict",
        "--n-predict",
        "--max-tokens",
        "max_tokens",
        type=Limit(),
        default=512,
        show_default=True,
        help="The most tokens of an answer; -1 sets no limit but the context.",
    )
    done: Callable[..., Any] = most(sampling_options()(warned))
    return done


def _warn_without_effect(sampling: Sampling) -> None:
    """Say on stderr which options that were given change nothing."""
    if sampling.temperature > 0:
        return
    source = click.get_current_context().get_parameter_source
    given = [name for name in _WITHOUT_EFFECT_AT_0 if source(name) != ParameterSource.DEFAULT]
    if given:
        names = ", ".join("--" + name.replace("_", "-") for name in given)
        click.echo(
            f"Warning: {names}: no effect at temperature 0, where the most likely token is always "
            "taken; give --temp, such as llama.cpp's 0.8",
            err=True,
        )
