"""A survey on a terminal, or in a pipe."""

from __future__ import annotations

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.style import Style
from rich.text import Text

from snapkv_local.inspection.kept import Span, Survey

# From no head to all of them: of the terminal's 256 colours, ink that can be read on each ground, on
# dark and on light terminals
_HEAT = (
    (0.0, Style()),
    (0.05, Style(color="color(16)", bgcolor="color(230)")),
    (0.15, Style(color="color(16)", bgcolor="color(222)")),
    (0.3, Style(color="color(16)", bgcolor="color(215)")),
    (0.5, Style(color="color(16)", bgcolor="color(208)")),
    (0.75, Style(color="color(231)", bgcolor="color(124)")),
)
_BAR = 30  # cells


def show(console: Console, survey: Survey, layer: int | None, n_spans: int) -> None:
    """Print a survey: the coloured text if the console is a terminal, figures, bars, spans.

    Args:
        layer: only this layer's heads count; None for all.
        n_spans: how many spans to list.
    """

    def line(text: Text | str = "") -> None:
        # lines are whole in a pipe, where nothing wraps them
        console.print(text, soft_wrap=True, markup=False, highlight=False, emoji=False)

    if console.is_terminal:
        for text in (coloured(survey, layer), "", legend(), ""):
            line(text)
    for fact in facts(survey, layer):
        line(fact)
    line()
    line("Share of the window's attention mass on the kept rows, mean over the KV heads of a layer")
    for number, share in zip(survey.layers, survey.coverage_by_layer(), strict=True):
        mark = "  <" if number == layer else ""
        line(f"layer {number:3}  {share:4.0%}  {'█' * round(share * _BAR)}{mark}".rstrip())
    spans = survey.spans(layer)
    if n_spans > 0 and spans:
        line()
        line("Kept most: share of heads, tokens of the prompt, text")
        width = console.width if console.is_terminal else None
        for span in spans[:n_spans]:
            line(span_line(span, width))


def coloured(survey: Survey, layer: int | None) -> Text:
    """The prompt, coloured by the share of heads that keep each token; the window underlined."""
    text = Text()
    prompt = survey.prompt
    first_of_window = len(prompt.tokens) - survey.window_size
    tokens = zip(prompt.starts, prompt.ends(), survey.shares(layer), strict=True)
    for i, (start, end, share) in enumerate(tokens):
        style = heat(float(share)) if i < first_of_window else Style(underline=True)
        text.append(prompt.text[start:end], style)
    return text


def heat(share: float) -> Style:
    """The colours for a share."""
    return next(style for least, style in reversed(_HEAT) if share >= least)


def legend() -> Text:
    """What the colours mean."""
    text = Text("share of heads that keep a token: ")
    for least, style in _HEAT:
        text.append(f" {f'{least:.0%}+' if least else f'under {_HEAT[1][0]:.0%}'} ", style)
    text.append("  ")
    text.append("window", Style(underline=True))
    return text


def facts(survey: Survey, layer: int | None) -> list[str]:
    """The figures, a line each."""
    stats = survey.stats
    share = survey.shares(layer)[: stats.n_prompt - survey.window_size]
    heads = len(survey.layers) * survey.n_head_kv
    found = [
        f"Kept {stats.n_kept:,} of {stats.n_prompt:,} prompt tokens in each of {heads} KV heads"
        f" ({len(survey.layers)} layers of {survey.n_head_kv})",
        f"Coverage {stats.coverage:.1%} of the window's attention mass, mean",
        f"Before the window: {np.mean(share == 0):.0%} of the tokens are kept by no head"
        f"{'' if layer is None else f' of layer {layer}'}, {np.mean(share >= 0.5):.0%} by half of"
        " the heads or more",
    ]
    if not survey.covers_question():
        found.append(
            f"The window of {survey.window_size} tokens does not cover the question, which takes"
            f" {survey.prompt.n_question} with the end of the chat template: raise --window-size"
        )
    return found


def span_line(span: Span, width: int | None) -> str:
    """A span in one line, cut to the width if there is one."""
    head = f"{span.share:4.0%}  {span.first:>6}-{span.first + span.n_tokens - 1:<6} "
    text = " ".join(span.text.split())
    if width is not None and cell_len(head + text) > width:
        return head + set_cell_size(text, max(width - len(head) - 1, 1)) + "…"
    return head + text
