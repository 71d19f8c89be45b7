"""Measure the server with several conversations, and write results/serve-CASE.json.

    measure/serve.py agents      # three agents in turn: what each turn evaluates, and its first token
    measure/serve.py short       # a short request while a long prompt is read
    measure/serve.py resting     # conversations that come back from memory and from files
    measure/serve.py mixed       # many requests, some of which their clients leave: memory, stuck sequences
    measure/serve.py killed      # kill -9 with conversations in files; another server goes on with them
    measure/serve.py isolation   # a secret each, at random, in fewer sequences: as each is alone

`before` in a record is a server that holds one conversation and lets none rest (--parallel 1 --cache-ram 0).
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from snapkv_local.bench import record as records
from snapkv_local.config import SnapKVConfig
from snapkv_local.models.resolve import resolve

ROOT = Path(__file__).resolve().parent.parent
BEFORE = ("--parallel", "1", "--cache-ram", "0")


class Server:
    """A server in a process of its own."""

    def __init__(self, model: str, *options: str) -> None:
        command = [sys.executable, "-m", "snapkv_local", "serve", model, "--port", "0", *options]
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        if not self.url:
            self.log.seek(0)
            sys.exit(self.log.read())
        self.client = httpx.Client(base_url=self.url, timeout=1800, trust_env=False)
        while self.client.get("/health").status_code != 200:
            time.sleep(0.2)

    def end(self, number: int = signal.SIGTERM) -> None:
        """Send a signal, and wait."""
        self.process.send_signal(number)
        self.process.wait(60)
        self.client.close()

    def bytes_resident(self) -> int:
        """Memory of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(status.partition("VmRSS:")[2].split()[0])

    def ask(
        self, prompt: list[int], n: int = 8, leave_after: float | None = None, **fields: Any
    ) -> dict[str, Any]:
        """An answer to tokens: its tokens, what was evaluated, and seconds to the first token.

        Args:
            leave_after: seconds after which the client goes away.
        """
        body = {"prompt": prompt, "n_predict": n, "temperature": 0, "stream": True, **fields}
        body["ignore_eos"] = True
        began, first, tokens, last = time.monotonic(), None, [], {}
        with self.client.stream("POST", "/completion", json=body) as response:
            if response.status_code != 200:
                return {"status": response.status_code, "tokens": []}
            for line in response.iter_lines():
                if leave_after is not None and time.monotonic() - began > leave_after:
                    return {"left": True, "tokens": tokens}
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line.removeprefix("data: "))
                if event.get("tokens") and first is None:
                    first = time.monotonic() - began
                tokens += event.get("tokens", [])
                last = event
        timings = last.get("timings", {})
        return {
            "tokens": tokens,
            "n_evaluated": timings.get("prompt_n"),
            "n_cached": timings.get("cache_n"),
            "seconds_first": first,
            "seconds": time.monotonic() - began,
            "slot": last.get("id_slot"),
        }


@contextmanager
def serving(model: str, *options: str) -> Iterator[Server]:
    """A server that ends with the block."""
    server = Server(model, *options)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.end()


def tokens_of(n: int, seed: int) -> list[int]:
    """At random, of every vocabulary here."""
    return np.random.default_rng(seed).integers(300, 3000, n).tolist()


def agents(args: argparse.Namespace) -> dict[str, Any]:
    """Three conversations in turn, each of which grows."""

    def run(n_turns: int, *options: str) -> list[dict[str, Any]]:
        texts = [tokens_of(args.n_prompt, seed) for seed in range(3)]
        turns = []
        with serving(args.model, *args.options, *options) as server:
            for i in range(n_turns):
                for agent, text in enumerate(texts):
                    found = server.ask(text, 8)
                    n_known = 0 if i == 0 else turns[-3]["n_tokens"]
                    turns.append(
                        {
                            "agent": agent,
                            "turn": i,
                            "n_prompt": len(text),
                            "n_new": len(text) - n_known,
                            "n_evaluated": found["n_evaluated"],
                            "seconds_first": found["seconds_first"],
                            # the last token was drawn and not evaluated
                            "n_tokens": len(text) + len(found["tokens"]) - 1,
                        }
                    )
                    print(turns[-1], flush=True)
                    texts[agent] = [
                        *text,
                        *found["tokens"],
                        *tokens_of(args.n_turn, 100 * i + agent),
                    ]
        return turns

    now = run(args.n_turns)
    before = run(args.n_turns_before, *BEFORE)

    def later(turns: list[dict[str, Any]], name: str) -> float:
        return statistics.median(turn[name] for turn in turns if turn["turn"] > 0)

    return {
        "turns": now,
        "turns_before": before,
        "only_new_evaluated": all(t["n_evaluated"] == t["n_new"] for t in now if t["turn"] > 0),
        "seconds_first": later(now, "seconds_first"),
        "seconds_first_before": later(before, "seconds_first"),
        "n_evaluated": later(now, "n_evaluated"),
        "n_evaluated_before": later(before, "n_evaluated"),
    }


def short(args: argparse.Namespace) -> dict[str, Any]:
    """A request of 100 tokens, alone and while a long prompt is read."""

    def run(*options: str) -> dict[str, Any]:
        with serving(args.model, *args.options, *options) as server:
            server.ask(tokens_of(50, 1), 2)
            idle = server.ask(tokens_of(100, 2), 16)
            long_alone = server.ask(tokens_of(args.n_prompt, 3), 2)
            found: list[Any] = []
            thread = threading.Thread(
                target=lambda: found.append(server.ask(tokens_of(args.n_prompt, 4), 2))
            )
            thread.start()
            time.sleep(0.3 * long_alone["seconds_first"])
            beside = server.ask(tokens_of(100, 5), 16)
            thread.join()
        return {
            "seconds_first_idle": idle["seconds_first"],
            "seconds_first_beside": beside["seconds_first"],
            "seconds_beside": beside["seconds"],
            "seconds_prefill_alone": long_alone["seconds_first"],
            "seconds_prefill_beside": found[0]["seconds_first"],
        }

    return {"now": run("--parallel", "4"), "before": run(*BEFORE)}


def resting(args: argparse.Namespace) -> dict[str, Any]:
    """One place, two conversations: each comes back from where it rests."""
    found = {}
    for where in ("ram", "disk"):
        with tempfile.TemporaryDirectory() as folder:
            options = ["--cache-ram", "4GiB"] if where == "ram" else ["--cache-ram", "0"]
            options += [] if where == "ram" else ["--cache-dir", folder]
            with serving(args.model, *args.options, "--parallel", "1", *options) as server:
                one, other = (tokens_of(args.n_prompt, seed) for seed in (1, 2))
                prefills = [server.ask(text, 4) for text in (one, other)]
                back = [server.ask(text, 4) for text in (one, other, one, other)]
        found[where] = {
            "seconds_prefill": statistics.median(each["seconds_first"] for each in prefills),
            "seconds_back": statistics.median(each["seconds_first"] for each in back),
            "n_evaluated": [each["n_evaluated"] for each in back],
        }
        found[where]["ratio"] = found[where]["seconds_back"] / found[where]["seconds_prefill"]
        print(where, found[where], flush=True)
    return found


def mixed(args: argparse.Namespace) -> dict[str, Any]:
    """Requests of all kinds from several clients, of which some go away."""
    draw = random.Random(1)
    lock = threading.Lock()
    counts = {"answered": 0, "left": 0, "failed": 0}
    resident: list[int] = []
    texts = [tokens_of(draw.randrange(20, 700), 1000 + i) for i in range(24)]
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(
            args.model, *args.options, "--parallel", "4", "--cache-ram", "8MiB",
            *("--cache-dir", folder, "--cache-disk", "64MiB"),
        ) as server,
    ):  # fmt: skip

        def client() -> None:
            while True:
                with lock:
                    if sum(counts.values()) >= args.n_requests:
                        return
                    text = draw.choice(texts)
                    n, leaves = draw.randrange(1, 24), draw.random() < 0.3
                    fields = {"cache_prompt": draw.random() < 0.9}
                    after = draw.random() * 0.3 if leaves else None
                try:
                    found = server.ask(text, n, after, **fields)
                    kind = (
                        "left" if found.get("left") else "answered" if found["tokens"] else "failed"
                    )
                except httpx.HTTPError:
                    kind = "failed"
                with lock:
                    counts[kind] += 1
                    if sum(counts.values()) % 50 == 0:
                        resident.append(server.bytes_resident())
                        print(counts, resident[-1] >> 20, "MiB", flush=True)

        threads = [threading.Thread(target=client) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        time.sleep(2)
        slots = server.client.get("/slots").json()
        last = server.ask(tokens_of(40, 9), 4)
    half = resident[len(resident) // 2 :]
    return {
        **counts,
        "bytes_resident": resident,
        "growth_second_half": half[-1] / half[0] - 1 if half else None,
        "stuck": sum(slot["is_processing"] for slot in slots),
        "answers_afterwards": len(last["tokens"]) > 0,
    }


def killed(args: argparse.Namespace) -> dict[str, Any]:
    """Conversations in files, and a server that ends without a chance to do anything."""
    with tempfile.TemporaryDirectory() as folder:
        options = (*args.options, "--parallel", "1", "--cache-ram", "0", "--cache-dir", folder)
        texts = [tokens_of(args.n_prompt, seed) for seed in range(4)]
        server = Server(args.model, *options)
        first = [server.ask(text, 4) for text in texts]
        server.end(signal.SIGKILL)
        n_files = len(list(Path(folder).glob("conversation-*.snapkv")))
        with serving(args.model, *options) as server:
            again = [server.ask(text, 4) for text in texts]
    return {
        "n_files": n_files,
        "n_evaluated": [each["n_evaluated"] for each in again],
        "n_warm": sum(each["n_cached"] > 0 for each in again),
        "seconds_first": [each["seconds_first"] for each in first],
        "seconds_first_again": [each["seconds_first"] for each in again],
    }


def isolation(args: argparse.Namespace) -> dict[str, Any]:
    """Conversations with a secret each, at random, over fewer sequences, with rest in memory and files."""
    from snapkv_local import Llama
    from snapkv_local.hardware import peak_rss
    from snapkv_local.server.pool import Pool
    from snapkv_local.server.resting import Resting

    config = SnapKVConfig(budget=96, window_size=16, decode_cells=64)
    sizes: dict[str, Any] = {"n_ctx": 2048, "n_batch": 128, "n_ubatch": 128, "verbose": False}
    sizes |= {"n_threads": 1, "n_threads_batch": 1}
    path = str(resolve(args.model))
    alone = Llama(path, snapkv=config, **sizes)
    several = Llama(path, snapkv=config, n_parallel=4, **sizes)
    draw = np.random.default_rng(7)
    texts = {talk: tokens_of(int(draw.integers(60, 300)), talk) for talk in range(args.n_talks)}
    seen: dict[int, list[Any]] = {talk: [] for talk in texts}
    n_evaluated = n_prompt = 0
    resident = []

    def answer(llm: Llama, prompt: list[int]) -> tuple[list[int], Any]:
        tokens, rows = [], []
        for token in llm.generate(prompt, temp=0.0):
            tokens.append(token)
            rows.append(llm._logits(1)[0].copy())
            if len(tokens) == 4:
                break
        llm.end_answer()
        return tokens, np.array(rows)

    with tempfile.TemporaryDirectory() as folder:
        pool = Pool(several, Resting(4 << 20, Path(folder), 1 << 30))
        for i in range(args.n_requests):
            talk = int(draw.integers(0, args.n_talks))
            text = texts[talk]
            with pool.llama() as llm:
                llm.place = lambda tokens, llm=llm: pool.place(llm, tokens, config)
                tokens, rows = answer(llm, text)
                n_evaluated, n_prompt = n_evaluated + len(text) - llm.n_cached, n_prompt + len(text)
            seen[talk].append((list(text), tokens, rows))
            texts[talk] = [*text, *tokens, *tokens_of(12, 10_000 + i)]
            if i % 100 == 99:
                resident.append(peak_rss())
                print(i + 1, resident[-1] >> 20, "MiB", flush=True)
        n_files = len(list(Path(folder).iterdir()))
        bytes_ram = pool.resting.bytes_ram
        worst, n_wrong = 0.0, 0
        for turns in seen.values():
            alone.reset()
            for text, tokens, rows in turns:
                expected_tokens, expected = answer(alone, text)
                worst = max(worst, float(np.abs(rows - expected).max()))
                n_wrong += tokens != expected_tokens
        pool.close()
    return {
        "n_talks": args.n_talks,
        "n_requests": args.n_requests,
        "n_prompt": n_prompt,
        "n_evaluated": n_evaluated,
        "n_files": n_files,
        "bytes_ram": bytes_ram,
        "largest_difference": worst,
        "n_wrong": n_wrong,
        "bytes_peak": resident,
    }


CASES = {
    "agents": agents,
    "short": short,
    "resting": resting,
    "mixed": mixed,
    "killed": killed,
    "isolation": isolation,
}


def main() -> None:
    """Run cases, and write a record of each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="+", choices=CASES)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--n-prompt", type=int, default=4300)
    parser.add_argument("--n-turn", type=int, default=190)
    parser.add_argument("--n-turns", type=int, default=10)
    parser.add_argument("--n-turns-before", type=int, default=3)
    parser.add_argument("--n-talks", type=int, default=50)
    parser.add_argument("--n-requests", type=int, default=500)
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    parser.add_argument("--serve", default="", metavar="OPTIONS", help="of snapkv-local serve")
    args = parser.parse_args()
    args.options = args.serve.split()
    for case in args.cases:
        found = CASES[case](args)
        record = {
            "case": case,
            "date": date.today().isoformat(),
            "model": args.model,
            "n_prompt": args.n_prompt,
            "options": args.options,
            **records.machine(),
            **found,
        }
        path = args.out / f"serve-{case}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(json.dumps({k: v for k, v in found.items() if not isinstance(v, list)}), path)


if __name__ == "__main__":
    main()
