"""`snapkv-local eval`: what compression costs in quality."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import click

from snapkv_local import policies
from snapkv_local.cli.console import result_console
from snapkv_local.cli.model import model_choice
from snapkv_local.cli.options import (
    chat_format_option,
    gather_loading,
    gpu_layers_option,
    threads_option,
    verbose_option,
)
from snapkv_local.cli.progress import CasesBar, Lines, find_model
from snapkv_local.cli.types import KvType, List, Size
from snapkv_local.config import SnapKVConfig
from snapkv_local.llama.load_options import LoadOptions

_TASKS = "needle,needles,question-after,continue,code"


@click.command("eval")
@model_choice(required=False)
@click.option(
    "--tasks",
    type=List(click.STRING),
    default=_TASKS,
    show_default=True,
    help="The tasks. There are also question-first, values, queries, keys, hex-keys, trace, "
    "count, in-turn, second-step, jsonl:FILE and longbench:FILE.",
)
@click.option(
    "--policies",
    type=List(click.STRING),
    default="snapkv-paper,default,streaming,random",
    show_default=True,
    help="The policies, each as NAME or NAME:OPTION=VALUE+...; default is snapkv, which is what the engine "
    "does without settings, snapkv-paper is the paper's form, selective is snapkv after a selective "
    "prefill, exact the same after an exact prefill of its own, to be timed beside it, and recall is snapkv "
    "with recall while answering.",
)
@click.option(
    "--budgets",
    type=List(Size()),
    default="64,128,256,512",
    show_default=True,
    help="How many rows each KV head keeps, the window included.",
)
@click.option(
    "--lengths",
    type=List(Size()),
    default="2k",
    show_default=True,
    help="The lengths of the prompts that tasks make, in tokens.",
)
@click.option(
    "--cases",
    "n_documents",
    type=click.IntRange(1),
    help="How many documents each task and length has.  [default: 8; all of a file]",
)
@click.option(
    "--questions",
    "n_questions",
    type=click.IntRange(1, 8),
    default=3,
    show_default=True,
    help="How many questions there are about each document that a task makes.",
)
@click.option(
    "--depths",
    "n_depths",
    type=click.IntRange(1),
    help="At how many depths of a document the answers stand, such as 10.  [default: at any]",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="The seed for drawing the cases."
)
@click.option(
    "--split",
    type=click.Choice(["tune", "test"]),
    default="test",
    show_default=True,
    help="Choose settings with tune, and report test; the two share no text.",
)
@click.option(
    "--kv-types",
    type=List(KvType()),
    default="f16",
    show_default=True,
    help="The types of K and V in the cache.",
)
@click.option(
    "--full-kv-types",
    type=List(KvType()),
    default=(),
    help="Types in which only the full cache is measured, without policies, such as q4_0.",
)
@click.option(
    "--window-size",
    type=Size(),
    default=SnapKVConfig.window_size,
    show_default=True,
    help="How many tokens at the prompt's end always stay.",
)
@click.option("--protect-system", is_flag=True, help="Keep all rows of the system prompt.")
@click.option(
    "--against",
    help="The policy that others are compared with.  [default: the first of --policies]",
)
@gpu_layers_option
@threads_option
@verbose_option
@chat_format_option
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Stop after so many minutes; with --json FILE, the same command goes on later.",
)
@click.option("--note", help="What a reader of the record should know.")
@click.option(
    "--json",
    "out",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    is_flag=False,
    flag_value=Path("-"),
    help="Write the record to this file, or go on with it; without a file, to stdout.",
)
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a page with plots to this file. It needs no other file and no network.",
)
@click.option(
    "--heatmap",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw right answers by length and depth to this PNG, and for dark pages to NAME-dark.",
)
@click.option(
    "--from",
    "drawn",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Show this record, or several as one, and measure nothing; leave out MODEL.",
)
@gather_loading
def evaluate(
    model: str | None,
    out: Path | None,
    html: Path | None,
    heatmap: Path | None,
    drawn: tuple[Path, ...],
    against: str | None,
    minutes: float | None,
    note: str | None,
    loading: LoadOptions,
    **options: Any,
) -> None:
    """Measure what compression costs in quality, on MODEL.

    Each prompt is evaluated once. Then every policy with every budget, and the full cache, answer from
    the same prefill. Only tokens whose logits come from the compressed cache are scored. With several
    types of cache, the full f16 cache is the reference for all.

    If the record is there already, the command goes on from it. After Ctrl-C, or after --minutes, it
    has what was done until then.
    """
    if (model is None) == (not drawn):
        raise click.UsageError(
            "name one MODEL to measure (as the argument, with --model, or with -hf), or records to "
            "show with --from"
        )
    # only now: NumPy and gguf take a moment, which no other command needs
    from snapkv_local.eval import terminal
    from snapkv_local.eval.summary import summarize

    if html is not None:
        from snapkv_local.report.html import load_template

        load_template("snapkv_local.eval")  # a missing package is found before the work
    if html is not None or heatmap is not None:
        from snapkv_local.report.drawing import require

        require("--html" if heatmap is None else "--heatmap")
    to_stdout = out == Path("-")
    if model is None:
        from snapkv_local.eval.joined import join

        data = join(drawn)
        baseline = _baseline(against or data.get("against"), data["settings"]["policies"])
        data.update(against=baseline, summary=summarize(data, baseline))
        if out is not None and not to_stdout:
            raise click.UsageError("--from measures nothing: leave out --json FILE")
    else:
        data = _measure(model, None if to_stdout else out, against, minutes, note, loading, options)
    if html is not None:
        from snapkv_local.eval.page import page

        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(page(data), encoding="utf-8")
        click.echo(f"Wrote {html}", err=True)
    if heatmap is not None:
        from snapkv_local.eval.heatmap import write_pngs

        for file in write_pngs(data, heatmap):
            click.echo(f"Wrote {file}", err=True)
    if to_stdout:
        click.echo(json.dumps(data))
    else:
        result_console().print(terminal.tables(data["summary"], data["against"]))


def _measure(
    model: str,
    out: Path | None,
    against: str | None,
    minutes: float | None,
    note: str | None,
    loading: LoadOptions,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Run what is left of an evaluation, and return its record with a summary."""
    from snapkv_local.eval import tasks
    from snapkv_local.eval.prepare import prepare
    from snapkv_local.eval.settings import Settings
    from snapkv_local.eval.summary import summarize

    began = time.monotonic()
    chosen = {p.spec: p for p in map(_policy, options["policies"])}
    baseline = _baseline(against, list(chosen))
    settings = Settings(
        tasks=tuple(tasks.get(name) for name in options["tasks"]),
        wanted=tasks.Wanted(
            lengths=options["lengths"],
            n_documents=options["n_documents"],
            n_questions=options["n_questions"],
            n_depths=options["n_depths"],
            seed=options["seed"],
            split=options["split"],
        ),
        policies=tuple(chosen),
        budgets=options["budgets"],
        kv_types=options["kv_types"],
        full_kv_types=options["full_kv_types"],
        window_size=options["window_size"],
        protect_system=options["protect_system"],
    )
    path = find_model(model)
    with Lines("making the cases"):
        evaluation = prepare(
            path,
            settings,
            list(chosen.values()),
            loading,
            out=out,
            note=note,
        )
    record = evaluation.record
    record.data["against"] = baseline
    try:
        with CasesBar(evaluation) as bar:
            left = math.inf if minutes is None else began + 60 * minutes - time.monotonic()
            evaluation.run(bar.done, left)
    except KeyboardInterrupt:
        if record.path is not None:
            click.echo(f"The same command goes on from what {record.path} has", err=True)
        raise
    finally:
        record.data["summary"] = summarize(record.data, baseline)
        record.save()
    if n_left := len(evaluation.steps()):
        click.echo(f"Stopped after {minutes:g} minutes: {n_left:,} cases are left", err=True)
    return record.data


def _baseline(against: str | None, specs: list[str]) -> str:
    """The policy that others are compared with."""
    if against is None:
        return specs[0]
    spec = _policy(against).spec
    if spec not in specs:
        raise click.UsageError(f"--against {against} is not measured: add it to --policies")
    return spec


def _policy(text: str) -> policies.Policy:
    if text.strip() == "default":
        return SnapKVConfig().as_policy()
    return policies.parse(text, policies.PREFILLS)
