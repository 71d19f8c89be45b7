"""The kept positions of one prompt, in a process of its own.

    kept.py SETTINGS      # JSON; the positions go to the .npy file that they name

Through the package's own Llama: the demo's text, or random tokens for a made model.
"""

from __future__ import annotations

import importlib.resources
import json
import sys
from typing import Any

import numpy as np

from snapkv_local import Llama, SnapKVConfig, hardware
from snapkv_local.bench.session import random_tokens


def kept(settings: dict[str, Any]) -> dict[str, Any]:
    """Write them; what the prefill did."""
    llm = Llama(
        settings["path"],
        snapkv=SnapKVConfig(**settings["config"]),
        n_ctx=settings["n_prompt"] + settings["room"],
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
    stats = llm.prefill(tokens)
    np.save(settings["kept_file"], llm.kept_positions())
    return {"n_prompt": len(tokens), "stats": stats.to_dict()}


if __name__ == "__main__":
    print(json.dumps(kept(json.loads(sys.argv[1]))))
