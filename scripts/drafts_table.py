"""The tables of what guesses cost, from measure/drafts.py, and of taking them back, from measure/looks.py."""

from __future__ import annotations

import json
from pathlib import Path

from table_parts import commit, table, where

_ORDINALS = ("first", "second", "third")


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


def looks(results: Path) -> str:
    """Time of an answer's token with recurrent layers, by where guesses are wrong."""
    tables = [_of_looks(file) for file in sorted(results.glob("looks-*.json"))]
    return "\n\n".join(tables) or "What it costs to take guesses back is not measured yet."


def _of_looks(file: Path) -> str:
    record = json.loads(file.read_text())
    cells = [
        [
            "none" if row["wrong_at"] is None else f"the {_ORDINALS[row['wrong_at']]}",
            f"{row['n_accepted']} of {row['n_drafted']}",
            str(row["n_looks"]),
            str(row["n_again"]),
            f"{row['time_per_token']:.2f}",
        ]
        for row in record["cases"]
    ]
    head = ["wrong guess", "guesses right", "looks", "evaluated again", "time of a token"]
    said = (
        f"\nThe shape of {record['model']} with {record['n_layer']} layers and random weights, "
        f"{record['n_guesses']} guesses a look, which a text that is known gives for nothing; times in "
        f"those of a token without drafts, medians ({where(record)}, {record['n_threads']} thread). "
        f"To put the states aside takes {record['time_of_a_copy']:.1%} of a token's time."
    )
    return "\n".join([*table(head, cells), said])
