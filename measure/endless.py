"""A long answer in a small cache: speed and evictions, and how near it stays to the full cache.

    measure/endless.py          # writes results/endless-smollm2.json

1. A text of 1,500 tokens is continued by 3,000, with cells for 768. Tokens that would end it are banned,
   and those that would repeat five tokens in a row: so small a model would soon be in a loop.
2. The same tokens are fed to the full cache, to ours, which evicts as it did, and to a sliding window of
   equal cells: at each event its newest rows stay. KL to the full cache, mean over each stretch between
   two events. All with and without 4 sinks. One text is continued by ours, the other by its author (the
   manual of Python).
"""

from __future__ import annotations

import argparse
import importlib.resources
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from snapkv_local import SnapKVConfig
from snapkv_local.bench import record as records
from snapkv_local.eval.prose import manual
from snapkv_local.hardware import n_cores
from snapkv_local.models.resolve import demo_model

if TYPE_CHECKING:
    from snapkv_local.llama.llama import Llama

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "results" / "endless-smollm2.json"

N_PROMPT = 1500
N_NEW = 3000
N_CTX = 8192
N_COMPARED = 500  # tokens at the answer's begin and end whose speed is compared
CONFIG = SnapKVConfig(budget=512, decode_cells=256)
SINKS = 4
TEMPERATURE = 0.8
SEEDS = (1, 2)
N_REPEATED = 5
N_BATCH = 256  # tokens of a text that are fed at once

Logits = npt.NDArray[np.float32]


def continued(llm: Llama, prompt: Sequence[int], n: int, seed: int) -> dict[str, Any]:
    """n tokens, with the seconds of each and what the evictions took. The first has the prefill's.

    seconds_cpu are those in which this process ran: others may use the machine.
    Decoding is measured here and not in create_completion(), where llama_cpp spells the whole answer
    again after each token.
    """
    llm.reset()
    llm.set_seed(seed)
    tokens: list[int] = []
    seconds: list[tuple[float, float]] = []
    events: list[int] = []  # tokens before which rows were evicted
    last = _clocks()
    processors = bans(llm)
    for token in llm.generate(list(prompt), temp=TEMPERATURE, logits_processor=processors):
        now = _clocks()
        tokens.append(token)
        seconds.append((round(now[0] - last[0], 6), round(now[1] - last[1], 6)))
        last = now
        if len(llm.evictions) > len(events):
            events.append(len(tokens) - 1)
        if len(tokens) == n:
            break
    return {
        "tokens": tokens,
        "seconds": [wall for wall, _ in seconds],
        "seconds_cpu": [cpu for _, cpu in seconds],
        "events": events,
        "evictions": [stats.to_dict() for stats in llm.evictions],
    }


def _clocks() -> tuple[float, float]:
    return time.monotonic(), time.process_time()


def ends(llm: Llama) -> list[int]:
    """Tokens that end an answer."""
    from llama_cpp import llama_cpp

    vocab = llama_cpp.llama_model_get_vocab(llm.model)
    return [t for t in range(llm.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocab, t)]


def bans(llm: Llama) -> Any:
    """What keeps one answer from ending and from going round in circles."""
    from llama_cpp import LogitsProcessorList

    endings, followers = ends(llm), Followers(N_REPEATED)

    def ban(ids: npt.NDArray[np.intc], scores: Logits) -> Logits:
        scores = np.copy(scores)
        scores[endings + followers.of(ids.tolist())] = -np.inf
        return scores

    return LogitsProcessorList([ban])


class Followers:
    """Tokens that would make the last ones of a text, n in all, the same as n in a row before."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._n_seen = n - 1
        self._after: dict[tuple[int, ...], set[int]] = {}

    def of(self, tokens: Sequence[int]) -> list[int]:
        """tokens: the text, longer at each call."""
        k = self._n - 1
        for i in range(self._n_seen, len(tokens)):
            self._after.setdefault(tuple(tokens[i - k : i]), set()).add(tokens[i])
        self._n_seen = max(self._n_seen, len(tokens))
        return sorted(self._after.get(tuple(tokens[-k:]), ()))


def completed(llm: Llama, prompt: Sequence[int], n: int, seed: int) -> dict[str, Any]:
    """The same through create_completion(): why it ended, and what it says."""
    llm.reset()
    answer = llm.create_completion(
        list(prompt),
        max_tokens=n,
        temperature=TEMPERATURE,
        seed=seed,
        logits_processor=bans(llm),
    )
    return {
        "finish_reason": answer["choices"][0]["finish_reason"],
        "completion_tokens": answer["usage"]["completion_tokens"],
        "n_evictions": len(llm.evictions),
        "text": answer["choices"][0]["text"],
    }


def speed(seconds: Sequence[float], events: Sequence[int], n: int) -> dict[str, Any]:
    """Tokens per second of the first and of the last n, with what evictions took and without.

    Args:
        seconds: of each token; the first token's are the prefill's and left out.
        events: tokens whose seconds have an eviction in them.
    """
    parts = {"first": range(1, n + 1), "last": range(len(seconds) - n, len(seconds))}
    found: dict[str, Any] = {}
    for name, part in parts.items():
        calm = [seconds[i] for i in part if i not in events]
        found[name] = {
            "tokens_per_second": len(calm) / sum(calm),
            "tokens_per_second_median": 1 / statistics.median(calm),
            # the least disturbed tenth
            "tokens_per_second_90": 1 / float(np.percentile(calm, 10)),
            "tokens_per_second_with_events": n / sum(seconds[i] for i in part),
            "n_events": sum(i in events for i in part),
        }
    names = [name for name in found["first"] if name.startswith("tokens_per_second")]
    found["last_to_first"] = {name: found["last"][name] / found["first"][name] for name in names}
    return found


@contextmanager
def newest_stay(llm: Llama, n_sink: int) -> Iterator[None]:
    """While open, evictions keep the first `n_sink` rows and the newest, whatever the votes say."""
    assert llm.snapkv is not None
    window, context = llm.snapkv.window_size, llm._context("newest_stay")

    def overwrite(d: Any) -> None:
        ids = np.ctypeslib.as_array(d.ids, (d.n_head_kv, d.n_kept))
        ids[:] = newest(d.n_prompt - window, d.n_kept, n_sink)

    context.tap = overwrite
    try:
        yield
    finally:
        context.tap = None


def newest(n_rows: int, n_kept: int, n_sink: int) -> npt.NDArray[np.int32]:
    """[n_kept]: of n_rows the first `n_sink`, and the last ones."""
    first = np.arange(min(n_sink, n_kept))
    return np.concatenate([first, np.arange(n_rows - n_kept + len(first), n_rows)]).astype(np.int32)


def fed(
    llm: Llama, prompt: Sequence[int], text: Sequence[int], n_sink: int | None
) -> Iterator[Logits]:
    """Logits after each token of a text, [n, n_vocab] for each stretch between two evictions.

    Args:
        n_sink: of the sliding window; None for rows that are kept by the votes.
    """
    # the text's evictions are those of generation: the last tokens are taken back and vote
    llm.prefill(prompt)
    at = 0
    while True:
        if n_sink is not None:
            check_window(llm, n_sink)
        stretch = text[at : at + llm._n_free()]
        yield llm.logits_for(stretch)
        at += len(stretch)
        if at == len(text):
            return
        if llm._extend([]) is None:
            raise RuntimeError(f"no eviction at position {llm.n_tokens}")


def check_window(llm: Llama, n_sink: int) -> None:
    """That the cache holds the newest rows, and no others."""
    assert llm.snapkv is not None
    kept = llm.kept_positions()
    expected = newest(llm.n_tokens - llm.snapkv.window_size, kept.shape[2], n_sink)
    if not (kept == expected).all():
        raise RuntimeError(f"not the newest rows at position {llm.n_tokens}: {kept[0, 0]}")


def kl(full: Logits, other: Logits) -> npt.NDArray[np.float64]:
    """KL(full || other) of each row, in nats."""
    a, b = log_softmax(full), log_softmax(other)
    return np.einsum("ij,ij->i", np.exp(a), a - b).astype(np.float64)


def log_softmax(logits: Logits) -> Logits:
    """Of each row."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def compared(
    plain: Llama, compact: Llama, prompt: Sequence[int], text: Sequence[int]
) -> dict[str, list[float]]:
    """Mean KL to the full cache over each stretch, by what stays in the cache."""
    assert compact.snapkv is not None
    plain.reset()
    plain.eval(prompt)
    # 16 bits a logit: all of them in 300 MB; they move a KL by less than 1e-4
    parts = (plain.logits_for(text[at : at + N_BATCH]) for at in range(0, len(text), N_BATCH))
    full = np.concatenate([part.astype(np.float16) for part in parts])
    found: dict[str, list[float]] = {}
    for n_sink in (0, SINKS):
        compact.set_snapkv(replace(compact.snapkv, n_sink=n_sink))
        after = f", {n_sink} sinks" if n_sink else ""
        found[f"ours{after}"] = _distances(full, fed(compact, prompt, text, None))
        with newest_stay(compact, n_sink):
            found[f"sliding window{after}"] = _distances(full, fed(compact, prompt, text, n_sink))
    return found


def _distances(full: npt.NDArray[np.float16], stretches: Iterator[Logits]) -> list[float]:
    at, found = 0, []
    for logits in stretches:
        found.append(float(kl(full[at : at + len(logits)].astype(np.float32), logits).mean()))
        at += len(logits)
    return found


def nearer(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """Two ways of keeping rows: mean of each over stretches, and in how many a is nearer."""
    return {
        "means": [statistics.fmean(a), statistics.fmean(b)],
        "n_nearer": sum(x < y for x, y in zip(a, b, strict=True)),
        "n": len(a),
    }


def main() -> None:
    # only now: it loads the native library
    from snapkv_local.llama.llama import Llama

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=n_cores())
    parser.add_argument("--tokens", type=int, default=N_NEW)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--out", type=Path, default=RECORD)
    args = parser.parse_args()
    if args.tokens != N_NEW and args.out == RECORD:
        parser.error(f"the record is of {N_NEW} tokens: name another file with --out")
    commit = records.commit(ROOT)

    def make(config: SnapKVConfig | None) -> Llama:
        return Llama(
            str(demo_model()),
            snapkv=config,
            n_ctx=N_CTX,
            n_batch=N_BATCH,
            n_ubatch=N_BATCH,
            flash_attn=True,
            n_threads=args.threads,
            n_threads_batch=args.threads,
            verbose=False,
        )

    found: dict[str, Any] = {
        "date": date.today().isoformat(),
        "commit": commit,
        "machine": records.machine(),
        "model": "SmolLM2-135M-Instruct Q4_1",
        "settings": {
            "n_prompt": N_PROMPT,
            "n_new": args.tokens,
            "n_ctx": N_CTX,
            "temperature": TEMPERATURE,
            "seeds": list(args.seeds),
            "n_repeated": N_REPEATED,
            "threads": args.threads,
            "kv_type": "f16",
            "snapkv": asdict(CONFIG),
        },
        "speed": [],
        "quality": [],
    }

    def keep(part: str, row: dict[str, Any]) -> None:
        found[part].append(row)
        records.write(args.out, found)
        short = {
            name: row[name] for name in row if name not in ("seconds", "seconds_cpu", "evictions")
        }
        print(short, file=sys.stderr, flush=True)

    compact, plain = make(CONFIG), make(None)
    story = importlib.resources.files("snapkv_local").joinpath("demo", "station.txt").read_bytes()
    prompt = compact.tokenize(story)[:N_PROMPT]
    for seed in args.seeds:
        run = continued(compact, prompt, args.tokens, seed)
        tokens = run.pop("tokens")
        n_compared = min(N_COMPARED, args.tokens // 3)
        row = {
            "seed": seed,
            "wall": speed(run["seconds"], run["events"], n_compared),
            "cpu": speed(run["seconds_cpu"], run["events"], n_compared),
            "seconds_event_median": statistics.median(
                stats["seconds_prefill"] for stats in run["evictions"]
            ),
            "seconds_token_median": statistics.median(run["seconds"]),
            **run,
        }
        if seed == args.seeds[0]:
            ours = tokens
            answer = completed(compact, prompt, args.tokens, seed)
            says = compact.detokenize(tokens, prev_tokens=prompt).decode(errors="ignore")
            answer["same_text"] = answer.pop("text") == says
            row["completion"] = answer
        keep("speed", row)
    book = compact.tokenize("".join(manual(Random(0), "test")).encode())
    begin, end = book[:N_PROMPT], book[N_PROMPT : N_PROMPT + args.tokens]
    texts = (("ours", prompt, ours), ("the manual of Python", begin, end))
    for name, begin, text in texts:
        distances = compared(plain, compact, begin, text)
        pairs = [("ours", "sliding window")]
        pairs.append(tuple(f"{way}, {SINKS} sinks" for way in pairs[0]))
        keep(
            "quality",
            {
                "continued by": name,
                "kl_by_stretch": distances,
                "against": {f"{a} / {b}": nearer(distances[a], distances[b]) for a, b in pairs},
            },
        )


if __name__ == "__main__":
    main()
