"""`snapkv-local demo`: a question about a long document, compressed and with the full cache."""

from __future__ import annotations

import importlib.resources
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from snapkv_local.cli.console import result_console
from snapkv_local.cli.options import json_option
from snapkv_local.models.resolve import demo_model
from snapkv_local.report.units import size

DOCUMENT = "station.txt"
QUESTION = "In which room does the cooling pump stand?"
BUDGET = 512
CTX = 4096
MAX_TOKENS = 48


@click.command()
@json_option
def demo(as_json: bool) -> None:
    """Answer a question about a long document, compressed and with the full cache beside it."""
    demo_model()
    document = importlib.resources.files("snapkv_local").joinpath("demo", DOCUMENT)
    with importlib.resources.as_file(document) as path:
        if not as_json:
            words = len(path.read_text(encoding="utf-8").split())
            click.echo(f"Document: {path.name}, {words:,} words\nQuestion: {QUESTION}\n")
        answers = {
            "compressed": answer(path, "--budget", str(BUDGET)),
            "full cache": answer(path, "--full"),
        }
    if as_json:
        click.echo(json.dumps(answers))
        return
    for name, result in answers.items():
        click.echo(f"{name.capitalize()}: {result['text'].strip()}")
    click.echo()
    result_console().print(compare(answers))


def answer(document: Path, *options: str) -> dict[str, Any]:
    """Run `snapkv-local run` in a process of its own, so that its peak memory is its own."""
    command = [sys.executable, "-m", "snapkv_local", "run", "demo", "--json"]
    command += ["--file", str(document), "--prompt", QUESTION, "--ctx", str(CTX)]
    command += ["--max-tokens", str(MAX_TOKENS), *options]
    # stderr is passed through: the progress bar and errors are shown as they come
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if result.returncode != 0:
        raise click.exceptions.Exit(result.returncode)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def compare(answers: dict[str, dict[str, Any]]) -> Table:
    """The figures of the answers side by side."""
    table = Table("", *answers)
    rows: dict[str, Callable[[dict[str, Any]], str]] = {
        "prompt tokens": lambda a: f"{a['n_prompt']:,}",
        "rows kept for each KV head": lambda a: f"{a['n_kept']:,}",
        "KV cache, without room": lambda a: size(a["bytes_kv"] - a["bytes_decode_cells"]),
        "peak memory of the process": lambda a: size(a["peak_rss"]),
        "prefill, tokens/s": lambda a: f"{a['n_prompt'] / a['seconds_first_token']:.0f}",
        "decode, tokens/s": lambda a: f"{a['decode_tokens_per_second'] or 0:.1f}",
    }
    for label, cell in rows.items():
        table.add_row(label, *(cell(a) for a in answers.values()))
    return table
