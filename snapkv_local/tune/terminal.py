"""What a search has found, for people."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from snapkv_local.errors import option_of
from snapkv_local.report.units import score


def show(report: dict[str, Any]) -> RenderableType:
    """Settings and budget, the budget's curve, and held-out figures."""
    parts: list[RenderableType] = [_verdict(report)]
    if report["curve"]:
        parts += [Text(), Text(_title("Tuning", report["tuning"])), _curve(report)]
    if report["held_out_scores"]:
        parts += [Text(), Text(_title("Held out", report["held_out"])), _held_out(report)]
        if report["held_out_reached"] is False:
            parts += [Text(), _missed(report)]
    elif report["curve"]:
        parts += [Text(), Text("Held-out documents were not measured.")]
    if report.get("ways"):
        parts += [Text(), *_ways(report["ways"])]
    return Group(*parts)


def _verdict(report: dict[str, Any]) -> Text:
    best, target = report["best"], report["target_kl"]
    if not report["curve"]:
        return Text("Nothing is known yet.")
    if report["settings"] is not None:
        return Text(_options(report["settings"]))
    last = report["curve"][-1]
    reached = [point for point in report["curve"] if point["kl"] <= target]
    options = _options(best)
    if reached:
        first = reached[0]
        missed = next(
            p for p in report["curve"] if p["budget"] > first["budget"] and p["kl"] > target
        )
        return Text(
            f"No budget is found yet: {first['budget']} rows reach KL {target:g} "
            f"({first['kl']:.3g}), and {missed['budget']} rows, which should be closer to the full "
            f"cache, miss it ({missed['kl']:.3g}). {report['tuning']['cases']} cases are too few to "
            f"tell: give more text or --minutes. Measured with {options}"
        )
    found = f"{score(last['kl'])} with --budget {last['budget']} {options}"
    if not report["finished"]:
        return Text(f"No budget measured until now reaches KL {target:g}. The last one has {found}")
    return Text(
        f"No budget below the prompt's {report['n_prompt']:,} tokens reaches KL {target:g}. The last "
        f"one measured has {found}: ask for a higher --target-kl, or keep the full cache."
    )


def _options(settings: dict[str, Any]) -> str:
    return " ".join(f"{option_of(name)} {value}" for name, value in settings.items())


def _missed(report: dict[str, Any]) -> Text:
    kl = report["held_out_scores"][0]["kl"]
    return Text(
        f"Held-out documents miss the target: KL {score(kl)} at this budget, and not "
        f"{report['target_kl']:g}. Take a larger budget, or give more text and --minutes."
    )


def _title(half: str, n: dict[str, int]) -> str:
    return f"{half}: {n['cases']} cases of {n['documents']} document" + "s" * (n["documents"] > 1)


def _curve(report: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("budget", "KL to full", f"within {report['target_kl']:g}", "top-1"):
        table.add_column(name, justify="right")
    for point in report["curve"]:
        within = "yes" if point["kl"] <= report["target_kl"] else "no"
        row = (str(point["budget"]), score(point["kl"]), within, f"{100 * point['top1']:.0f}%")
        is_found = report["settings"] and point["budget"] == report["settings"]["budget"]
        table.add_row(*row, style="bold" if is_found else "")
    return table


def _held_out(report: dict[str, Any]) -> Table:
    rows = report["held_out_scores"]
    tasks = list(rows[0]["kl_by_task"])
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("settings")
    names = ("budget", "KL to full", "worst", "top-1")
    for name in (*names, *(tasks if len(tasks) > 1 else [])):
        table.add_column(name, justify="right")
    for row in rows:
        cells = [
            _name(row, report["best"]),
            str(row["budget"]),
            score(row["kl"]),
            score(row["worst_kl"]),
            f"{100 * row['top1']:.0f}%",
            *(score(row["kl_by_task"][t]) for t in tasks if len(tasks) > 1),
        ]
        table.add_row(*cells)
    return table


def _ways(ways: dict[str, Any]) -> list[RenderableType]:
    rows = ways["held_out"]
    reasons = [Text(f"Not measured, {name}: {why}") for name, why in ways["refused"].items()]
    if not rows:
        return [Text(f"Selective prefills and recall are not measured: {ways['reason']}"), *reasons]
    n = rows[0]["cases"]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("with the settings found, and")
    for name in ("speed", "KL to full", "worst", "top-1", "lost"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            _flags(row["settings"]) or "nothing else",
            f"{row['speed']:.2f}x" if row["speed"] else "-",
            score(row["kl"]),
            score(row["worst_kl"]),
            f"{100 * row['top1']:.0f}%",
            f"{100 * row['lost']:+.0f}%" if row["settings"] else "-",
            style="bold" if row["is_chosen"] else "",
        )
    title = f"Not exact, and not in the profile; held out: {n} case" + "s" * (n > 1)
    return [Text(title), table, *reasons]


def _flags(settings: dict[str, Any]) -> str:
    """As options of the command line."""
    parts = []
    for name, value in settings.items():
        parts.append(option_of(name) if value is True else f"{option_of(name)} {value}")
    return " ".join(parts)


def _name(row: dict[str, Any], best: dict[str, Any]) -> str:
    """What was found, the default, or both."""
    is_best = all(row.get(name) == value for name, value in best.items())
    names = [*(["found"] if is_best else []), *(["default"] if row["is_default"] else [])]
    return " = ".join(names)
