"""Templates of reports that are one HTML file each."""

from __future__ import annotations

import importlib.resources
from typing import TYPE_CHECKING

from snapkv_local.errors import ConfigError

if TYPE_CHECKING:
    from jinja2 import Template


def load_template(package: str) -> Template:
    """The file page.html.j2 of a package, which escapes what is put into it.

    Raises:
        ConfigError: jinja2 is missing.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as e:
        raise ConfigError(
            "--html", "the package jinja2 is not installed", 'pip install "snapkv-local[report]"'
        ) from e
    source = importlib.resources.files(package).joinpath("page.html.j2")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source.read_text(encoding="utf-8"))
