"""`snapkv-local demo`: a question about a long document, compressed and with the full cache."""

from __future__ import annotations

import importlib.resources
import json
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from snapkv_local import process
from snapkv_local.cli.console import result_console
from snapkv_local.cli.options import json_option, threads_option
from snapkv_local.cli.progress import Lines
from snapkv_local.cli.types import Size
from snapkv_local.errors import PromptError
from snapkv_local.models.resolve import demo_model, needle_model
from snapkv_local.report.units import size

TOKENS = 16 * 1024
MAX_TOKENS = 48
ROOM = 512  # tokens for the question, the chat template and the answer

VALUE = "58213"
FACT = f"The access code of the harbour office is {VALUE}."
QUESTION = "What is the access code of the harbour office?"
DEPTH = 0.6  # where in the document it stands


@dataclass(frozen=True)
class Demo:
    """A document and a question.

    Attributes:
        model: as `run` takes it.
        text: of the document.
        question: about it.
        value: the word that a right answer has.
        budget: rows kept for each KV head.
        ctx: of the context, in tokens.
        says: of model and document, for people.
    """

    model: str
    text: str
    question: str
    value: str
    budget: int
    ctx: int
    says: str

    def is_right(self, answer: str) -> bool:
        """If the value stands in an answer, as a word of its own."""
        return re.search(rf"(?<!\w){re.escape(self.value)}(?!\w)", answer) is not None


@click.command()
@click.option(
    "--tokens",
    type=Size(),
    default=TOKENS,
    help="The length of the document.  [default: 16k]",
)
@click.option(
    "--chat", is_flag=True, help="Ask a model that chats (extra `demo`), about a shorter document."
)
@threads_option
@json_option
def demo(tokens: int, chat: bool, threads: int | None, as_json: bool) -> None:
    """Ask about a long document, with compression and without.

    It shows both answers, and memory and speed side by side. The document is Python's manual with one
    sentence put into it, and the model is `needle`, which finds facts in long texts and can do nothing
    else.
    """
    shown = station() if chat else manual(tokens)
    if not as_json:
        click.echo(f"{shown.says}\nQuestion: {shown.question}\n")
    with tempfile.TemporaryDirectory(prefix="snapkv-demo-") as folder:
        document = Path(folder) / "document.txt"
        document.write_text(shown.text, encoding="utf-8")
        engine = [] if threads is None else ["--threads", str(threads)]
        answers = {
            "compressed": answer(shown, document, *engine, "--budget", str(shown.budget)),
            "full cache": answer(shown, document, *engine, "--full"),
        }
    if as_json:
        click.echo(json.dumps(answers))
        return
    for name, result in answers.items():
        click.echo(f"{name.capitalize()}: {result['text'].strip()}")
        if not result["right"]:
            click.echo(f"    That is wrong: the document says {shown.value}.")
    click.echo()
    result_console().print(compare(answers))


def manual(n_tokens: int) -> Demo:
    """Python's manual, as many paragraphs as make n_tokens tokens, with the fact in it.

    Raises:
        ConfigError: this Python has no manual.
        PromptError: it is not so long.
    """
    # only now: they load the native library
    from snapkv_local.eval.prose import whole_manual
    from snapkv_local.eval.tokens import open_tokens

    with Lines("making the document"):
        tokens = open_tokens(needle_model())
        taken: list[str] = []
        n = 0
        for paragraph in whole_manual():
            if n >= n_tokens:
                break
            taken.append(paragraph)
            n += len(tokens.text(paragraph + "\n\n", begins=False))
        tokens.llm.close()
    if n < n_tokens:
        raise PromptError(
            f"--tokens {n_tokens:,}",
            f"are more than Python's manual has, {n:,}",
            "give fewer",
        )
    at = int(DEPTH * len(taken))
    at += next((i for i, text in enumerate(taken[at:]) if text.endswith(".")), 0)
    taken[at] += f" {FACT}"
    return Demo(
        model="needle",
        text="\n\n".join(taken),
        question=QUESTION,
        value=VALUE,
        budget=128,
        ctx=n + ROOM,
        says=(
            "Model: needle, 11M weights, trained to find facts in long texts. It can do nothing else.\n"
            f"Document: the first {n:,} tokens of Python's manual, and somewhere among them: {FACT}"
        ),
    )


def station() -> Demo:
    """The package's own document, and a model that chats.

    Raises:
        ModelFileError: the model is not installed.
    """
    demo_model()
    file = importlib.resources.files("snapkv_local").joinpath("demo", "station.txt")
    text = file.read_text(encoding="utf-8")
    return Demo(
        model="demo",
        text=text,
        question="In which room does the cooling pump stand?",
        value="417",
        budget=512,
        ctx=4096,
        says=f"Model: SmolLM2-135M-Instruct\nDocument: station.txt, {len(text.split()):,} words",
    )


def answer(shown: Demo, document: Path, *options: str) -> dict[str, Any]:
    """Run `snapkv-local run` in a process of its own, so that its peak memory is its own."""
    command = [*process.of_module("snapkv_local"), "run", shown.model, "--json"]
    command += ["--file", str(document), "--prompt", shown.question, "--ctx", str(shown.ctx)]
    command += ["--max-tokens", str(MAX_TOKENS), *options]
    # stderr is passed through: the progress bar and errors are shown as they come
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if result.returncode != 0:
        raise click.exceptions.Exit(result.returncode)
    found: dict[str, Any] = json.loads(result.stdout)
    return {**found, "right": shown.is_right(found["text"])}


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
