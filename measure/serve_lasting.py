"""How long conversations last in the server: at rest, through `kill -9`, and in thousands of requests."""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from servers import Ours, serving, tokens_of
from snapkv_local.config import SnapKVConfig
from snapkv_local.models.resolve import resolve


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
    """Requests of all kinds from several clients, of which some go away.

    Also half as many with memory as glibc gives it back by itself.
    """
    found = _mixed(args, args.n_requests)
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.mmap_threshold_max=33554432"  # glibc's own default
    try:
        return {**found, "as_glibc_does": _mixed(args, args.n_requests // 2)}
    finally:
        del os.environ["GLIBC_TUNABLES"]


def _mixed(args: argparse.Namespace, n_requests: int) -> dict[str, Any]:
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
                    if sum(counts.values()) >= n_requests:
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
    third, fourth = (resident[len(resident) * i // 4 :][: len(resident) // 4] for i in (2, 3))
    return {
        **counts,
        "bytes_resident": resident,
        "growth_second_half": statistics.median(fourth) / statistics.median(third) - 1,
        "stuck": sum(slot["is_processing"] for slot in slots),
        "answers_afterwards": len(last["tokens"]) > 0,
    }


def killed(args: argparse.Namespace) -> dict[str, Any]:
    """Conversations in files, and a server that ends without a chance to do anything."""
    with tempfile.TemporaryDirectory() as folder:
        options = (*args.options, "--parallel", "1", "--cache-ram", "0", "--cache-dir", folder)
        texts = [tokens_of(args.n_prompt, seed) for seed in range(4)]
        server = Ours(args.model, *options)
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
