"""Code in README and the documentation."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

# fenced, or indented by four spaces after an empty line
CODE = re.compile(r"^( *)```\S*\n(.*?)^\1```|(?<=\n\n)((?: {4}.*\n|\n)+)", re.M | re.S)


def code_lines(text: str) -> Iterator[str]:
    """Lines of code; one that goes on after a backslash is one line."""
    for match in CODE.finditer(text):
        yield from re.sub(r"\\\n\s*", " ", match[2] or match[3]).splitlines()
