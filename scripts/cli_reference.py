"""docs/cli.md, the reference of the command line, from the commands themselves.

    scripts/cli_reference.py           # rewrite it
    scripts/cli_reference.py --check   # fail if it differs

Each command has the text of its --help on a terminal of 80 columns.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from snapkv_local.cli import main as snapkv_local

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "cli.md"

# what click takes on a terminal of 80 columns
_WIDTH = 78

_HEADER = """\
# Command line

This page has what `--help` says about each command; `scripts/cli_reference.py` writes it.

Results go to stdout; progress and messages go to stderr. An error is one line: what it is about, what is
wrong, and what to do. The exit code is 0 for success, 1 for an error, 2 for wrong usage, 130 for Ctrl-C, and
141 if nobody reads stdout any more.
"""


def render() -> str:
    """The whole page."""
    root = _context(snapkv_local, "snapkv-local", None)
    found = [("snapkv-local", root), *_below(root, root, ())]
    sections = [_section(name, context) for name, context in found]
    return "\n".join([_HEADER, *sections])


def _below(
    context: click.Context, root: click.Context, path: tuple[str, ...]
) -> Iterator[tuple[str, click.Context]]:
    """All commands under one, by name, each before its own."""
    if not isinstance(context.command, click.Group):
        return
    for name in context.command.list_commands(context):
        command = context.command.get_command(context, name)
        if command is None or command.hidden:
            continue
        names = (*path, name)
        # under the root and not under its group: click would put the group's arguments in between
        inner = _context(command, " ".join(names), root)
        yield inner.command_path, inner
        yield from _below(inner, root, names)


def _context(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    return click.Context(
        command,
        info_name=name,
        parent=parent,
        terminal_width=_WIDTH,
        **command.context_settings,
    )


def _section(name: str, context: click.Context) -> str:
    lines = [line.rstrip() for line in context.get_help().splitlines()]
    return "\n".join([f"## {name}\n", "```text", *lines, "```\n"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if it differs")
    check = parser.parse_args().check
    new = render()
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == new:
        return 0
    if check:
        print("docs/cli.md is not what --help says: run scripts/cli_reference.py", file=sys.stderr)
        return 1
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
