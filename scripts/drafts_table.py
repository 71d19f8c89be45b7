"""The table of what guesses cost, from measure/drafts.py."""

from __future__ import annotations

import json
from pathlib import Path

from table_parts import commit, table


def drafts(results: Path) -> str:
    """Milliseconds of guesses and of a look at them, and what they gain, by the number of guesses."""
    tables = [_of(file) for file in sorted(results.glob("drafts-*.json"))]
    return "\n\n".join(tables) or "What guesses cost is not measured yet."


def _of(file: Path) -> str:
    record = json.loads(file.read_text())
    cells = [
        [
            f"{length['n_prompt']:,}",
            str(step["n_guesses"]),
            f"{1000 * step['seconds_guess']:.1f}",
            f"{1000 * step['seconds_look']:.1f}",
            f"{1000 * length['seconds_token']:.1f}",
            f"{step['gain_all_right']:.2f}",
            f"{step['break_even']:.0%}",
        ]
        for length in record["lengths"]
        for step in length["steps"]
    ]
    model, smaller = (Path(record[name]).stem for name in ("model", "smaller"))
    head = ["prompt", "guesses", "guessing, ms", "a look, ms", "a token without, ms"]
    head += ["times as fast, all right", "gains from"]
    said = (
        f"\nThe shapes of {model} and, for guesses, {smaller}, with random weights, a budget of "
        f"{record['budget']:,} and one sequence ({record['device']}, commit {commit(record)}). The "
        "last column is the share of guesses that has to be right for any gain."
    )
    return "\n".join([*table(head, cells), said])
