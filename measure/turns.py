"""Later turns on the device, each against a prefill anew, in a process of its own.

    turns.py SETTINGS      # JSON; prints what differs

`vault`: a prompt that goes on from the vault, and the same prompt without one. `extend`: a turn that
is longer than the free cells, and the same turn in a cache with cells for it. `session`: tokens after
a conversation was saved and loaded, and after the conversation itself. Chunks are equal, so that a
difference in logits is no rounding of other products.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from snapkv_local import Llama, SnapKVConfig, hardware
from snapkv_local.bench.session import random_tokens

N_GENERATED = 32


def turns(settings: dict[str, Any]) -> dict[str, Any]:
    """Run them; the largest difference of logits, as a share of the largest logit, and kept sets."""
    n_ubatch, n_threads = settings["n_ubatch"], settings["n_threads"] or hardware.n_cores()
    config = SnapKVConfig(budget=settings["budget"], decode_cells=2 * n_ubatch, layer_group=1)
    vaulted = replace(config, vault="ram")

    def make(config: SnapKVConfig) -> Llama:
        return Llama(
            settings["path"],
            snapkv=config,
            n_ctx=settings["n_prompt"] + 8 * n_ubatch,
            n_batch=n_ubatch,
            n_ubatch=n_ubatch,
            n_gpu_layers=settings["n_gpu_layers"],
            n_threads=n_threads,
            n_threads_batch=n_threads,
            seed=1,
            verbose=False,
        )

    llm, fresh = make(vaulted), make(config)
    tokens = random_tokens(llm.n_vocab(), settings["n_prompt"] + 4 * n_ubatch, 1).tolist()
    text, turn = tokens[: settings["n_prompt"]], tokens[settings["n_prompt"] :]

    llm.prefill(text)
    stats = llm.prefill(tokens)
    fresh.prefill(tokens)
    kept = zip(
        *(
            one.kept_positions().reshape(-1, stats.n_kept - config.window_size)
            for one in (llm, fresh)
        ),
        strict=True,
    )
    found = {
        "n_cached": stats.n_cached,
        "vault": difference(llm, fresh),
        "vault_jaccard": float(
            np.mean([len(np.intersect1d(a, b)) / len(np.union1d(a, b)) for a, b in kept])
        ),
        "session": after_loading(llm, make(vaulted), tokens),
    }

    wide = make(replace(config, decode_cells=8 * n_ubatch))
    for one in (fresh, wide):
        one.prefill(text)
        one.eval(turn)
    # the one has evicted, the other had room
    assert fresh.last_prefill.n_prompt == len(tokens) and wide.last_prefill.n_prompt == len(text)
    return {**found, "extend": difference(fresh, wide)}


def difference(a: Llama, b: Llama) -> float:
    """Of the last tokens' logits."""
    expected = b._logits(1)
    return float(np.abs(a._logits(1) - expected).max() / np.abs(expected).max())


def after_loading(llm: Llama, other: Llama, tokens: list[int]) -> bool:
    """Whether a conversation goes on from its file with the tokens that follow in the original."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "session.snapkv"
        llm.save_session(path)
        other.load_session(path)
        a, b = (
            list(itertools.islice(one.generate(tokens, temp=0.0), N_GENERATED))
            for one in (llm, other)
        )
        return a == b


if __name__ == "__main__":
    print(json.dumps(turns(json.loads(sys.argv[1]))))
