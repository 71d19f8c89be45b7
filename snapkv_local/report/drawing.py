"""Drawings of matplotlib, as files and within a page that has colours of its own."""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from snapkv_local.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# matplotlib knows no CSS: these colours stand for the page's, which inline() puts in their place
INK, GRID = "#010203", "#040506"


def require(what: str) -> None:
    """Raise ConfigError if matplotlib is missing, which `what` needs."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            what, "the package matplotlib is not installed", 'pip install "snapkv-local[report]"'
        )


@contextmanager
def settings(ink: str, grid: str, salt: str) -> Iterator[None]:
    """While open, what is drawn has these colours for text and for lines beside the data.

    Args:
        salt: of the names within an SVG, which differ from those of other drawings of a page.

    Raises:
        ConfigError: matplotlib is missing.
    """
    require("plots")
    import matplotlib

    chosen: dict[Any, Any] = {
        "svg.fonttype": "none",  # text stays text: it can be read aloud and has the page's colour
        "svg.hashsalt": salt,
        "font.size": 9,
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": grid,
        "xtick.color": ink,
        "ytick.color": ink,
        "grid.color": grid,
    }
    with matplotlib.rc_context(chosen):
        yield


def inline(drawing: Figure, title: str, colours: Mapping[str, str] | None = None) -> str:
    """SVG for a page that defines --grid; text has the page's own colour.

    Args:
        title: for those who hear the page.
        colours: what to put in the place of further colours.
    """
    out = io.StringIO()
    drawing.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # the page's style makes it as wide as there is room
    text = re.sub(r'^<svg ([^>]*?)height="[^"]*" ', r"<svg \1", text)
    text = re.sub(r'^<svg ([^>]*?)width="[^"]*" ', r"<svg \1", text)
    text = text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
    for colour, css in {INK: "currentColor", GRID: "var(--grid)", **(colours or {})}.items():
        text = text.replace(colour, css)
    return text
