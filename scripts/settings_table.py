"""README's table of settings: the fields of SnapKVConfig, with their defaults and what its docstring says."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

from snapkv_local.config import SnapKVConfig
from table_parts import table


def settings(_results: Path) -> str:
    """A row for each setting."""
    said = sentences()
    config = SnapKVConfig()
    rows = [
        [f"`{field.name}`", _shown(getattr(config, field.name)), said[field.name]]
        for field in dataclasses.fields(config)
    ]
    return "\n".join(table(["setting", "default", ""], rows))


def sentences() -> dict[str, str]:
    """By setting: the first sentence of its paragraph in the docstring."""
    text = inspect.getdoc(SnapKVConfig) or ""
    paragraphs = text.split("Attributes:\n")[1].split("\nRaises:")[0]
    found = {}
    for name, lines in re.findall(r"^    (\w+): (.*\n(?:     +.*\n)*)", paragraphs, re.MULTILINE):
        # a stop within brackets or before a small letter ends no sentence
        first = re.split(r"\.\s+(?=[A-Z\"])", " ".join(lines.split()))[0]
        found[name] = first.removesuffix(".")
    return found


def _shown(value: object) -> str:
    return "" if value is None else f"{value}"
