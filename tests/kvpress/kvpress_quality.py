"""The kvpress half of quality.py: answers from caches that NVIDIA kvpress has compressed.

Runs in an environment of its own (requirements.txt). Loads the GGUF through transformers,
dequantized to float32. Each prompt is prefilled once; then every press and budget compresses that
cache with kvpress's own code, and the tokens after the prompt are fed to what is left, at their true
positions.

Reads JSON:
    cases     [{id, prompt, after, gold}], token ids: `after` is fed and not scored, `gold` is scored
    budgets   rows for each KV head, the window included
    window, kernel
Writes JSON:
    scores    {id: {"full" | PRESS/BUDGET: {exact, nll, kl}}}: every gold token is the most likely one;
              mean negative log-likelihood and mean KL from the full cache, nats
    versions  of packages
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kvpress import AdaKVPress, BasePress, SnapKVPress
from kvpress_side import load_model
from transformers import DynamicCache

PRESSES: dict[str, Callable[[SnapKVPress], Any]] = {
    "snapkv-paper": lambda press: press,
    # budgets that differ between the heads of a layer; kvpress masks what they leave out
    "adakv": lambda press: AdaKVPress(press),
}


class Recording(BasePress):
    """Compresses nothing, and notes what each layer's press is called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def post_init_from_model(self, model: Any) -> None:
        """Nothing depends on the model."""

    def compress(self, module, hidden_states, keys, values, attentions, kwargs):
        self.calls.append((module, hidden_states, keys, values, attentions, kwargs))
        return keys, values


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def scores(log_p: np.ndarray, full: np.ndarray, gold: list[int]) -> dict[str, float]:
    """log_p and full: [n_gold, n_vocab], of a cell and of the full cache."""
    rows = np.arange(len(gold))
    return {
        "exact": float((log_p.argmax(axis=-1) == gold).all()),
        "nll": round(float(-log_p[rows, gold].mean()), 6),
        "kl": round(float((np.exp(full) * (full - log_p)).sum(axis=-1).mean()), 6),
    }


def answer(model: Any, cache: DynamicCache, case: dict[str, Any]) -> np.ndarray:
    """Log-probabilities at the gold tokens, [n_gold, n_vocab], in float64."""
    fed = [*case["after"], *case["gold"][:-1]]
    begin = len(case["prompt"])
    out = model(
        torch.tensor([fed]),
        past_key_values=cache,
        position_ids=torch.arange(begin, begin + len(fed))[None],
    )
    return log_softmax(out.logits[0, -len(case["gold"]) :].double().numpy())


def run_case(
    model: Any, case: dict[str, Any], budgets: list[int], window_size: int, kernel_size: int
) -> dict[str, dict[str, float]]:
    n_prompt = len(case["prompt"])
    recording, cache = Recording(), DynamicCache()
    with recording(model):
        model(torch.tensor([case["prompt"]]), past_key_values=cache, logits_to_keep=1)
    # what follows is written into the cache's own tensors
    calls = [(c[0], c[1], c[2].clone(), c[3].clone(), *c[4:]) for c in recording.calls]
    full = answer(model, cache, case)
    found = {"full": scores(full, full, case["gold"])}
    for name, wrap in PRESSES.items():
        for budget in budgets:
            # kvpress keeps int(n_prompt * (1 - ratio)) rows; half a row keeps rounding out of it
            ratio = 1 - (budget + 0.5) / n_prompt
            press = wrap(SnapKVPress(ratio, window_size=window_size, kernel_size=kernel_size))
            cache = DynamicCache()
            for module, hidden, keys, values, attentions, kwargs in calls:
                module.masked_key_indices = None
                kept = press.compress(module, hidden, keys, values, attentions, kwargs)
                check_rows(module, kept[0], n_prompt, budget)
                cache.update(kept[0].clone(), kept[1].clone(), module.layer_idx)
            found[f"{name}/{budget}"] = scores(answer(model, cache, case), full, case["gold"])
    for module, *_ in calls:
        module.masked_key_indices = None
    return found


def check_rows(module: Any, keys: torch.Tensor, n_prompt: int, budget: int) -> None:
    """The budget is kept, in the mean over heads."""
    n_head_kv, n_rows = keys.shape[1:3]
    masked = getattr(module, "masked_key_indices", None)
    n_masked = 0 if masked is None else len(masked[0])
    if n_head_kv * n_rows - n_masked != n_head_kv * budget:
        raise SystemExit(
            f"{n_rows} rows of {n_prompt}, {n_masked} masked: not a budget of {budget}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="GGUF file, llama architecture")
    parser.add_argument("--cases", type=Path, required=True, help="JSON, as above")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    given = json.loads(args.cases.read_text())
    model = load_model(args.model.resolve())
    found = {}
    with torch.inference_mode():
        for i, case in enumerate(given["cases"]):
            settings = given["budgets"], given["window_size"], given["kernel_size"]
            found[case["id"]] = run_case(model, case, *settings)
            print(f"kvpress: {i + 1} of {len(given['cases'])}", flush=True)
    packages = ("kvpress", "torch", "transformers", "gguf", "numpy")
    record = {"scores": found, "versions": {name: version(name) for name in packages}}
    args.out.write_text(json.dumps(record))


if __name__ == "__main__":
    main()
