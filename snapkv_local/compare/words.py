"""Figures as words, the same in the terminal and on the page."""

from __future__ import annotations

from snapkv_local.compare.fits import USABLE, Fit
from snapkv_local.compare.reader import Case, Figure, Record
from snapkv_local.report.units import size

NOT_MEASURED = "not measured"

_ALIKE = 0.01  # a smaller spread is not written

CAPTION = (
    f"The figures are medians of n runs; where these differ by more than {_ALIKE:.0%}, the lowest and "
    "highest are in brackets. x is the ratio to the full cache on the same machine with the same settings. "
    "KV is what the prompt's rows take; room for new tokens comes on top, and the peak includes it."
)


def tokens(n: int) -> str:
    """A number of tokens, in K of 1024 where it is close to one."""
    return f"{n / 1024:.4g}K" if n % 1024 == 0 else f"{n:,}"


def short_tokens(n: int) -> str:
    """About so many tokens: in K of 1024, with a digit after the point below 10K."""
    if n < 1024:
        return str(n)
    return f"{n / 1024:,.0f}K" if n >= 10 * 1024 else f"{n / 1024:.1f}K".replace(".0K", "K")


def number(value: float) -> str:
    """Three significant digits, more before the point."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def figure(found: Figure | None, full: Figure | None = None) -> str:
    """A speed or a time, its spread, and the ratio to that of the full cache."""
    if found is None:
        return NOT_MEASURED
    return number(found.median) + _spread(found) + _ratio(found, full)


def memory(found: Figure | None, full: Figure | None = None) -> str:
    """As figure(), of bytes; without the spread, which says nothing at this precision."""
    return NOT_MEASURED if found is None else size(round(found.median)) + _ratio(found, full)


def kv(case: Case) -> str:
    """The prompt's rows in the KV cache, and what they would be uncompressed."""
    if case.is_full:
        return NOT_MEASURED if case.bytes_kv_full is None else size(case.bytes_kv_full)
    if case.bytes_kept is None or case.bytes_kv_full is None:
        return NOT_MEASURED
    of_full = f" of {size(case.bytes_kv_full)}"
    return size(case.bytes_kept) + (", room included," if case.has_room else "") + of_full


def row(case: Case, record: Record) -> list[str]:
    """A case as cells: prompt, cache, n, first token, prefill, decode, peak, KV."""
    full = record.case(case.against)
    return [
        tokens(case.n_prompt),
        case.series,
        str(case.n_runs),
        figure(case.first_token, full.first_token if full else None),
        figure(case.prefill, full.prefill if full else None),
        figure(case.decode, full.decode if full else None),
        memory(case.peak, full.peak if full else None),
        kv(case),
    ]


HEAD = ("prompt", "cache", "n", "first token, s", "prefill, tok/s", "decode, tok/s", "peak", "KV")


def describe(record: Record) -> str:
    """Machine, build and commit in a line."""
    parts = [
        size(record.memory) if record.memory is not None else f"memory {NOT_MEASURED}",
        f"snapkv-local {record.version or 'of unknown version'}, commit {record.commits}",
        f"llama.cpp {(record.llama_cpp or 'unknown')[:9]}",
        record.build,
        record.date,
    ]
    return " · ".join(filter(None, parts))


def _spread(found: Figure) -> str:
    if found.high <= found.low * (1 + _ALIKE):
        return ""
    return f" [{number(found.low)}..{number(found.high)}]"


def _ratio(found: Figure, full: Figure | None) -> str:
    return "" if full is None or full.median == 0 else f" ({found.median / full.median:.2f}x)"


FITS_CAPTION = (
    f"This is the longest prompt whose measured peak is within {USABLE:.0%} of the memory; the rest is "
    "for the system and other programs. ~ marks a length on the straight line through the measured peaks, "
    "and * all that the model was trained for. A number without ~ says nothing about longer prompts. "
    "- means that it did not fit. + and ? mean that less memory may do: on a GPU, the hidden state of "
    "G = auto goes to the host where memory is short."
)


def fit_cell(fit: Fit, gib: int) -> str:
    """Tokens of the longest prompt that fits so many GiB, as short_tokens() writes them."""
    along, measured = fit.along[gib], fit.fits[gib]
    if along is not None and fit.n_ctx_train is not None and along >= fit.n_ctx_train:
        return f"{short_tokens(fit.n_ctx_train)}*"
    n, about = (measured, "") if along is None else (along, "~")
    if n == 0:
        return "?" if fit.adapts else "-"
    return f"{about}{short_tokens(n)}" + ("+" if fit.adapts else "")
