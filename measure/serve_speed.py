"""How soon the server answers when there are several conversations, beside llama.cpp's llama-server.

Both servers are up at the same time and are asked in turn, with the same model, context, threads and
chunks, so that what else the machine does falls upon both.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

from servers import LlamaServer, Ours, Server, command_of, ended, tokens_of
from snapkv_local.models.resolve import resolve

# of an answer
N_ANSWER = 8
MEMORY = {"bytes_resident": "VmRSS", "bytes_anonymous": "RssAnon", "bytes_peak": "VmHWM"}


@contextlib.contextmanager
def side_by_side(args: argparse.Namespace, n_parallel: int) -> Iterator[dict[str, Server]]:
    """Servers by name, with room for so many conversations of n_ctx tokens each."""
    ours = ["--threads", str(args.threads), "--ctx", str(args.n_ctx), "--budget", str(args.budget)]
    with contextlib.ExitStack() as stack:
        start = stack.enter_context
        found: dict[str, Server] = {}
        options = [*ours, "--parallel", str(n_parallel), *args.options]
        found["ours"] = start(ended(Ours(args.model, *options)))
        if args.llama_server is not None:
            theirs = {
                "--threads": args.threads,
                "--threads-batch": args.threads,
                "--ctx-size": args.n_ctx * n_parallel,
                "--parallel": n_parallel,
                "--batch-size": args.n_chunk,
                "--ubatch-size": args.n_chunk,
                "--flash-attn": "on",
            }
            options = [str(each) for pair in theirs.items() for each in pair]
            options.append("--no-kv-unified")
            path = str(resolve(args.model))
            found["llama-server"] = start(ended(LlamaServer(args.llama_server, path, *options)))
        for server in found.values():
            server.ask(tokens_of(50, 999), 2, cache_prompt=False)
        yield found


def agents(args: argparse.Namespace) -> dict[str, Any]:
    """Three conversations in turn, each of which grows."""
    turns: dict[str, list[dict[str, Any]]] = {}
    memory: dict[str, dict[str, int]] = {}
    ends = time.monotonic() + 60 * args.minutes
    with side_by_side(args, 3) as servers:
        texts = {name: [tokens_of(args.n_prompt, seed) for seed in range(3)] for name in servers}
        for i in range(args.n_turns):
            if time.monotonic() > ends:
                break
            for agent in range(3):
                # who is first changes from turn to turn
                names = list(servers) if (i + agent) % 2 == 0 else list(servers)[::-1]
                for name in names:
                    done = turns.setdefault(name, [])
                    done.append(_turn(servers[name], texts[name][agent], done, i, agent))
                    said = done[-1].pop("tokens")
                    more = tokens_of(args.n_turn, 100 * i + agent)
                    texts[name][agent] = [*texts[name][agent], *said, *more]
                    print(name, done[-1], flush=True)
        for name, server in servers.items():
            memory[name] = {key: server.bytes_of(of) for key, of in MEMORY.items()}
    found: dict[str, Any] = {"turns": turns, "memory": memory}
    for key in ("seconds_first", "seconds_cpu", "n_evaluated"):
        for kind in ("later", "begun"):
            found[f"{key}_{kind}"] = {
                name: _spread(
                    [turn[key] for turn in done if (turn["turn"] > 0) == (kind == "later")]
                )
                for name, done in turns.items()
            }
    found["only_new_evaluated"] = all(
        turn["n_evaluated"] == turn["n_new"] for turn in turns["ours"] if turn["turn"] > 0
    )
    if "llama-server" in turns:
        pairs = list(zip(turns["ours"], turns["llama-server"], strict=True))
        for key in ("seconds_first", "seconds_cpu"):
            ratios = [a[key] / b[key] for a, b in pairs if a["turn"] > 0]
            found[f"{key}_ratio"] = _spread(ratios)
    return {**found, **_settings(args)}


def _turn(
    server: Server, text: list[int], done: list[dict[str, Any]], i: int, agent: int
) -> dict[str, Any]:
    found = server.ask(text, N_ANSWER)
    n_known = 0 if i == 0 else done[-3]["n_tokens"]
    return {
        "agent": agent,
        "turn": i,
        "n_prompt": len(text),
        "n_new": len(text) - n_known,
        "n_evaluated": found["n_evaluated"],
        "seconds_first": found["seconds_first"],
        "seconds_cpu": found["seconds_cpu"],
        # the last token was drawn and not evaluated
        "n_tokens": len(text) + len(found["tokens"]) - 1,
        "tokens": found["tokens"],
    }


def short(args: argparse.Namespace) -> dict[str, Any]:
    """A request of 100 tokens, alone and while a long prompt is read."""
    rounds: dict[str, list[dict[str, float]]] = {}
    with side_by_side(args, 2) as servers:
        alone = {
            name: {
                "seconds_first": server.ask(tokens_of(100, 2), 16)["seconds_first"],
                "seconds_prefill": server.ask(tokens_of(args.n_prompt, 3), 2)["seconds_first"],
            }
            for name, server in servers.items()
        }
        print("alone", alone, flush=True)
        ends = time.monotonic() + 60 * args.minutes
        for i in range(args.n_rounds):
            if i > 0 and time.monotonic() > ends:
                break
            for name in list(servers) if i % 2 == 0 else list(servers)[::-1]:
                wait = 0.3 * alone[name]["seconds_prefill"]
                rounds.setdefault(name, []).append(_beside(servers[name], args.n_prompt, i, wait))
                print(name, rounds[name][-1], flush=True)
    found = {
        name: {
            "seconds_first_alone": alone[name]["seconds_first"],
            "seconds_prefill_alone": alone[name]["seconds_prefill"],
            **{key: _spread([each[key] for each in done]) for key in done[0]},
        }
        for name, done in rounds.items()
    }
    return {"rounds": rounds, **found, **_settings(args)}


def _beside(server: Server, n_prompt: int, i: int, wait: float) -> dict[str, float]:
    """A short request, some seconds after a long one."""
    found: list[Any] = []
    thread = threading.Thread(
        target=lambda: found.append(server.ask(tokens_of(n_prompt, 10 + i), 2, id_slot=0))
    )
    thread.start()
    time.sleep(wait)
    beside = server.ask(tokens_of(100, 50 + i), 16, id_slot=1)
    thread.join()
    return {
        "seconds_first": beside["seconds_first"],
        "seconds": beside["seconds"],
        "seconds_prefill": found[0]["seconds_first"],
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    names = ("threads", "n_ctx", "budget", "n_chunk")
    found = {name: getattr(args, name) for name in names}
    if args.llama_server is not None:
        command = [*command_of(args.llama_server), "--version"]
        said = subprocess.run(command, capture_output=True, text=True, check=True)
        lines = (said.stdout + said.stderr).splitlines()
        found["llama_server"] = next(line for line in lines if line.startswith("version"))
    return found
