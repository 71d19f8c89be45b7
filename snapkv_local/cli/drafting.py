"""What drafts an answer's tokens: a smaller model, the conversation itself, or heads of the model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from snapkv_local.cli.model import together
from snapkv_local.cli.progress import find_model
from snapkv_local.cli.types import Number
from snapkv_local.llama.load_options import DraftOptions

_N_MAX, _N_LOOKUP = 3, 10  # as drafting.py has them, which loads the native library

_options = together(
    click.option(
        "-md",
        "--model-draft",
        "--spec-draft-model",
        "model_draft",
        metavar="MODEL",
        help="A smaller model with the same vocabulary, which guesses tokens that MODEL then checks "
        "together; its cache is compressed, too.",
    ),
    click.option(
        "--lookup",
        is_flag=True,
        help="Guess that what followed the last tokens in the conversation before follows again.",
    ),
    click.option(
        "--mtp",
        "heads",
        is_flag=True,
        help="Guess with the prediction heads (multi-token prediction) that MODEL itself has.",
    ),
    click.option(
        "--draft-max",
        "--spec-draft-n-max",
        "draft_max",
        type=click.IntRange(1),
        help=f"How many tokens are guessed at most.  [default: {_N_MAX}; with --lookup {_N_LOOKUP}]",
    ),
    click.option(
        "--draft-min",
        "--spec-draft-n-min",
        "draft_min",
        type=click.IntRange(0),
        help="Fewer guessed tokens are not checked.  [default: 0]",
    ),
    click.option(
        "--draft-p-min",
        "--spec-draft-p-min",
        "draft_p_min",
        type=Number(min=0, max=1),
        help="Stop guessing at a token that the smaller model, or the head, finds less probable.  "
        "[default: 0]",
    ),
)


def draft_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--model-draft, --lookup, --mtp and their numbers; the command gets drafts for gather_loading()."""

    @functools.wraps(command)
    def with_drafts(
        *args: Any,
        model_draft: str | None,
        lookup: bool,
        heads: bool,
        draft_max: int | None,
        draft_min: int | None,
        draft_p_min: float | None,
        **options: Any,
    ) -> Any:
        ways = {"--lookup": lookup, "--model-draft": model_draft is not None, "--mtp": heads}
        given = [name for name, is_given in ways.items() if is_given]
        if len(given) > 1:
            raise click.UsageError(f"{given[0]} and {given[1]} both guess: give one of them")
        numbers = {
            "--draft-max": (draft_max, not given),
            "--draft-min": (draft_min, model_draft is None and not heads),
            "--draft-p-min": (draft_p_min, model_draft is None and not heads),
        }
        for name, (number, is_idle) in numbers.items():
            if number is not None and is_idle:
                raise click.UsageError(
                    f"{name} {number:g}: give --model-draft or --mtp, which it is for"
                )
        most = _N_MAX if draft_max is None else draft_max
        if draft_min is not None and draft_min > most:
            raise click.UsageError(f"--draft-min {draft_min}: at most {most} tokens are guessed")
        drafts = None
        if lookup:
            drafts = DraftOptions(n_max=draft_max)
        elif heads:
            drafts = DraftOptions(None, draft_max, draft_min, draft_p_min, heads=True)
        elif model_draft is not None:
            drafts = DraftOptions(find_model(model_draft), draft_max, draft_min, draft_p_min)
        return command(*args, drafts=drafts, **options)

    done: Callable[..., Any] = _options(with_drafts)
    return done
