"""The tables of the server with several conversations, from records of measure/serve.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from snapkv_local.report.units import MIB
from table_parts import commit, size, table

Record = dict[str, Any]

THEIRS = "llama-server"


def speed(results: Path) -> str:
    """How soon each turn of three agents begins, and a short request beside a long one."""
    agents, short = (_load(results, case) for case in ("agents", "short"))
    if agents is None:
        return "The server beside llama-server is not measured yet."
    names = [name for name in ("ours", THEIRS) if name in agents["turns"]]
    of_memory = agents["memory"]
    last = max(turn["n_prompt"] for turn in agents["turns"]["ours"])
    n_turns = 1 + max(turn["turn"] for turn in agents["turns"]["ours"])
    what = f"three agents in turn, {n_turns} turns each, from {agents['n_prompt']:,} to {last:,} tokens"
    rows = {
        f"{what}: seconds to the first token of a later turn": [
            _spread(agents["seconds_first_later"][name]) for name in names
        ],
        "of the processor": [_spread(agents["seconds_cpu_later"][name]) for name in names],
        "tokens that a later turn evaluates": [
            f"{agents['n_evaluated_later'][name]['median']:g}" for name in names
        ],
        f"seconds to the first token behind the first {agents['n_prompt']:,}": [
            _spread(agents["seconds_first_begun"][name]) for name in names
        ],
        "memory of the process at the end": [
            size(of_memory[name]["bytes_resident"], MIB) for name in names
        ],
        "of that, without mapped files": [
            size(of_memory[name]["bytes_anonymous"], MIB) for name in names
        ],
    }
    if short is not None:
        rows |= {
            "seconds to the first token of a request of 100 tokens": [
                f"{short[name]['seconds_first_alone']:.2f}" for name in names
            ],
            f"the same while a prompt of {short['n_prompt']:,} tokens is read": [
                _spread(short[name]["seconds_first"]) for name in names
            ],
            "seconds until that prompt is read, alone": [
                f"{short[name]['seconds_prefill_alone']:.1f}" for name in names
            ],
            "and with the short request": [
                _spread(short[name]["seconds_prefill"]) for name in names
            ],
        }
    lines = table(
        ["", *("snapkv-local" if name == "ours" else name for name in names)],
        [[label, *cells] for label, cells in rows.items()],
    )
    ratio, cpu = agents.get("seconds_first_ratio"), agents.get("seconds_cpu_ratio")
    if ratio is not None and cpu is not None:
        lines.append(
            f"\nTo its first token, a later turn of ours takes {ratio['median']:.2f} times as long as the "
            f"same turn of llama-server ({ratio['least']:.2f} to {ratio['most']:.2f}), and "
            f"{cpu['median']:.2f} times as much of the processor ({cpu['least']:.2f} to {cpu['most']:.2f}). "
            "The two were asked one after the other, and both servers were up all the time."
        )
    lines.append(
        f"\n{agents['model']}, {agents['threads']} thread, {agents['n_ctx']:,} tokens of context for "
        f"each conversation, a budget of {agents['budget']}, prompts in chunks of "
        f"{agents['n_chunk']}; medians, with least and most ({_where(agents)}; "
        f"{agents.get('llama_server', '')})."
    )
    return "\n".join(lines)


def one(results: Path) -> str:
    """The same server with one conversation, which is what it had before."""
    agents, short = (_load(results, f"{case}-one") for case in ("agents", "short"))
    if agents is None or short is None:
        return "The server with one conversation is not measured yet."
    now, before = short["now"], short["before"]
    rows = [
        [
            "three agents in turn: tokens that a later turn evaluates",
            *(f"{agents[name]:,g}" for name in ("n_evaluated", "n_evaluated_before")),
        ],
        [
            "seconds to the first token of a later turn",
            *(f"{agents[name]:.1f}" for name in ("seconds_first", "seconds_first_before")),
        ],
        [
            f"seconds to the first token of 100 tokens, while a prompt of {short['n_prompt']:,} is read",
            *(f"{each['seconds_first_beside']:.1f}" for each in (now, before)),
        ],
    ]
    return "\n".join(
        [*table(["", "several conversations", "one"], rows), f"\n{agents['model']}; medians."]
    )


def lasting(results: Path) -> str:
    """Conversations that rest, that outlive the server, and many requests."""
    records = [_load(results, case) for case in ("resting", "killed", "mixed", "isolation")]
    if any(record is None for record in records):
        return "How long conversations last in the server is not measured yet."
    resting, killed, mixed, isolation = (record or {} for record in records)
    n_mixed = sum(mixed[name] for name in ("answered", "left", "failed"))
    rows = {
        f"a conversation of {resting['n_prompt']:,} tokens comes back from memory, and from a file: share "
        "of the time of its prefill": (
            f"{resting['ram']['ratio']:.1%}, {resting['disk']['ratio']:.1%}"
        ),
        f"`kill -9` with {killed['n_files']} conversations in files: how many go on after a restart "
        "with one new token evaluated": f"{killed['n_warm']}",
        f"{n_mixed:,} requests from six clients, of whom {mixed['left']:,} leave: requests without an "
        "answer, places that stay busy": f"{mixed['failed']}, {mixed['stuck']}",
        f"{isolation['n_talks']} conversations with a secret each, {isolation['n_requests']} requests over 4 "
        "places, with rest in memory and in files: largest difference in the logits from each alone": (
            f"{isolation['largest_difference']:g}"
        ),
    }
    return "\n".join(
        [
            *table(["", ""], [[*row] for row in rows.items()]),
            f"\n{mixed['model']} ({_where(mixed)}).",
        ]
    )


def _memory(mixed: Record) -> str:
    at = mixed["bytes_resident"]
    return ", ".join(size(at[len(at) * i // 4 - 1], MIB) for i in (1, 2, 4))


def _spread(of: dict[str, float]) -> str:
    return f"{of['median']:.2f} ({of['least']:.2f} to {of['most']:.2f})"


def _where(record: Record) -> str:
    when = f"commit {commit(record)}" if "commit" in record else record["date"]
    of_one = record["cores"] == 1
    cores = "one core" if of_one else f"{record['cores']} cores that had other work"
    return f"{record['cpu']}, {cores}; {when}"


def _load(results: Path, case: str) -> Record | None:
    file = results / f"serve-{case}.json"
    return json.loads(file.read_text()) if file.exists() else None
