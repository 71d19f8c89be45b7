"""The kept positions of one prompt, in a process of its own.

    kept.py SETTINGS      # JSON; what was kept goes to the .npz file that they name

Through the package's own Llama: the demo's text, or random tokens for a made model. In the file are
`kept` and `expected`, [n_layer, n_head_kv, n_keep] each: the positions that the device has kept, and
those that the reference keeps in float64 from the very queries and keys that the device has scored.
"""

from __future__ import annotations

import importlib.resources
import json
import sys
from typing import Any

import numpy as np

from snapkv_local import Llama, SnapKVConfig, hardware
from snapkv_local.bench.session import random_tokens
from snapkv_local.policies import reference


def kept(settings: dict[str, Any]) -> dict[str, Any]:
    """Write them; what the prefill did."""
    llm = Llama(
        settings["path"],
        snapkv=SnapKVConfig(**settings["config"]),
        n_ctx=settings["n_prompt"] + settings["decode_cells"],
        n_ubatch=settings["n_ubatch"],
        n_gpu_layers=settings["n_gpu_layers"],
        n_threads=settings["n_threads"] or hardware.n_cores(),
        n_threads_batch=settings["n_threads"] or hardware.n_cores(),
        verbose=False,
    )
    if settings["text"]:
        text = importlib.resources.files("snapkv_local").joinpath("demo", "station.txt")
        tokens = llm.tokenize(text.read_bytes())[: settings["n_prompt"]]
    else:
        tokens = random_tokens(llm.n_vocab(), settings["n_prompt"], settings["seed"]).tolist()
    n_keep = llm.snapkv.n_kept(len(tokens)) - llm.snapkv.window_size
    expected: list[Any] = []

    def tap(d: Any) -> None:
        q = np.ctypeslib.as_array(d.q, (d.n_head, d.n_queries, d.head_dim))
        k = np.ctypeslib.as_array(d.k, (d.n_head_kv, d.n_prompt, d.head_dim))
        config = llm.snapkv
        score = reference.scores(
            q[:, -config.n_voters() :],
            k,
            d.scale,
            kernel_size=config.kernel_size,
            pooling=config.pooling,
            aggregation=config.aggregation,
            self_weight=config.self_weight,
            softcap=d.softcap,
        )
        expected.append(reference.select(score[:, : len(tokens) - config.window_size], n_keep))

    llm._context("kept").tap = tap
    stats = llm.prefill(tokens)
    np.savez(settings["kept_file"], kept=llm.kept_positions(), expected=np.array(expected))
    return {"n_prompt": len(tokens), "stats": stats.to_dict()}


if __name__ == "__main__":
    print(json.dumps(kept(json.loads(sys.argv[1]))))
