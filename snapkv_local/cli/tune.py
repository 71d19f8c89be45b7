"""`snapkv-local tune`: settings and the smallest budget for a user's own documents."""

from __future__ import annotations

import json
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from snapkv_local import profile as profiles
from snapkv_local.cli.console import result_console
from snapkv_local.cli.loading import read_document
from snapkv_local.cli.model import model_choice
from snapkv_local.cli.options import (
    chat_format_option,
    files_option,
    gather_loading,
    json_option,
    model_options,
)
from snapkv_local.cli.progress import Lines, find_model
from snapkv_local.cli.types import SIZE, Number
from snapkv_local.errors import ConfigError
from snapkv_local.llama.load_options import LoadOptions

if TYPE_CHECKING:
    from snapkv_local.tune.prepare import Prepared
    from snapkv_local.tune.search import Search
    from snapkv_local.tune.ways import Ways


@click.command()
@model_choice()
@files_option("A text, PDF or DOCX like those that you ask about; may be repeated, and - is stdin.")
@click.option(
    "--target-kl",
    type=Number(min=0, min_open=True),
    default=0.05,
    show_default=True,
    help="The mean KL to the full cache, in nats, that the budget must not exceed.",
)
@click.option(
    "--minutes",
    type=Number(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="How long to measure; two cases of each half are measured in any case.",
)
@click.option(
    "--length", type=SIZE, help="The length of the prompts, in tokens.  [default: 4k, or less]"
)
@click.option(
    "--save",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write what was found to this file, for --profile of ask, run and serve.",
)
@model_options
@chat_format_option
@json_option
@gather_loading
def tune(
    model: str,
    files: tuple[Path, ...],
    target_kl: float,
    minutes: float,
    length: int | None,
    save: Path | None,
    loading: LoadOptions,
    as_json: bool,
) -> None:
    """Find settings, and the smallest budget, for your own documents.

    The files are cut into documents. MODEL continues each of them, and if it has a chat template, it is
    asked how sentences go on. What it predicts with the compressed cache is compared with what it
    predicts with the full one. Half of the documents choose the settings, and the others tell what
    these are worth. With the time that is left, selective prefills and recall are measured with what was
    found, which a profile does not have: neither is exact.

    Ctrl-C ends the command with what is known until then.
    """
    if not files:
        raise click.UsageError("give a document like yours with --file")
    if save is not None and save.is_dir():
        raise click.UsageError(f"--save {save} is a folder: give a file's name")
    if "/" in (loading.kv_type or ""):
        raise click.UsageError("documents are measured with one type for K and V: give --kv-type")
    # only now: NumPy and gguf take a moment, which no other command needs
    from snapkv_local.tune.measure import Bench
    from snapkv_local.tune.prepare import WINDOW, prepare
    from snapkv_local.tune.search import Search
    from snapkv_local.tune.ways import Ways

    path = find_model(model)
    # once each: the same text must not be held out from itself
    texts = [(str(file), read_document(file)) for file in dict.fromkeys(files)]
    with Lines("cutting the documents"):
        prepared = prepare(path, texts, loading, length=length)
    with closing(prepared.open_engine()) as engine, Bar(60 * minutes) as bar:
        bench = Bench(engine, WINDOW)
        search = Search(bench, prepared.pieces, target_kl, 60 * minutes, bar.update)
        bar.search = search
        began, ways = time.monotonic(), None
        try:
            search.run()
            if search.budget is not None:
                ways = Ways(
                    engine, search.best, search.budget, target_kl, search.tuning, search.held_out,
                    began + 60 * minutes - time.monotonic(), bar.update,
                )  # fmt: skip
                ways.run()
        except KeyboardInterrupt:
            bar.close()
            _end(search, ways, prepared, save, as_json)
            raise
    _end(search, ways, prepared, save, as_json)


def _end(
    search: Search, ways: Ways | None, prepared: Prepared, save: Path | None, as_json: bool
) -> None:
    """Show and write what is known.

    Raises:
        ConfigError: nothing was found that a profile could say.
    """
    from snapkv_local.tune.terminal import show

    report = {
        "model": prepared.model,
        "kv_type": prepared.kv_type,
        **search.report(),
        "ways": None if ways is None else ways.report(),
    }
    if as_json:
        click.echo(json.dumps(report))
    else:
        result_console().print(show(report))
    if save is None:
        return
    if report["settings"] is not None:
        profiles.save(save, prepared.profile(report))
        click.echo(f"Wrote {save}", err=True)
    elif search.is_finished:
        raise ConfigError(
            f"--save {save}", "no budget reaches the target", "give a higher --target-kl"
        )
    else:
        click.echo(f"{save} is not written: no budget is known to reach the target", err=True)


class Bar:
    """How far it is, on stderr: a bar on a terminal, and lines elsewhere."""

    def __init__(self, seconds: float) -> None:
        self.console = Console(stderr=True)
        self.seconds = seconds
        self.lines = Lines("loading the model")
        self.search: Search | None = None
        self.has_warned = False
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn(f"of {seconds / 60:g} min"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.task = self.progress.add_task("loading the model", total=None)

    def __enter__(self) -> Bar:
        self.progress.start()
        self.lines.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar off the screen."""
        self.progress.stop()
        self.lines.close()

    def update(self, what: str, done: int, total: int) -> None:
        """Cases of a round that are done, and all of them."""
        if self.search is not None and self.search.is_late and not self.has_warned:
            self.has_warned = True
            self.console.print(
                f"The least that can be measured takes longer than {self.seconds / 60:g} minutes",
                highlight=False,
            )
        shown = f"{done} of {total} cases, time box {self.seconds / 60:g} min"
        self.lines.update(what, done, total, shown)
        self.progress.update(self.task, description=what, completed=done, total=total)
