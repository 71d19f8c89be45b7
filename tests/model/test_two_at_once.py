"""Two Llamas of one process that compute at once, each on a thread of its own."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from snapkv_local import Llama, SnapKVConfig

CONFIGS = {
    "other rows and groups": SnapKVConfig(
        budget=128, window_size=24, decode_cells=64, layer_group=4, kernel_size=7
    ),
    "a vault": SnapKVConfig(budget=96, window_size=16, decode_cells=64, vault="ram"),
    "a policy in Python": SnapKVConfig(
        budget=96, window_size=16, decode_cells=64, policy="streaming"
    ),
    "the full cache": None,
}


def compute(llm: Llama, prompt: list[int]) -> list[Any]:
    """What a prefill keeps, and what the model then says."""
    llm.reset()
    if llm.snapkv is not None:
        llm.clear_vault()
    tokens = [token for token, _ in zip(llm.generate(prompt, temp=0.0), range(16), strict=False)]
    kept = [] if llm.snapkv is None else llm.kept_positions()
    return [tokens, kept, llm.logits_for(prompt[:16])]


@pytest.mark.parametrize("other", CONFIGS)
def test_two_prefills_at_once_are_what_each_is_alone(
    make: Callable[..., Llama], prompt: list[int], other: str
) -> None:
    both = [make(), make(CONFIGS[other], flash_attn=True)]
    prompts = [prompt, [*prompt[150:], *prompt[:140]]]
    alone = [compute(llm, tokens) for llm, tokens in zip(both, prompts, strict=True)]
    start = threading.Barrier(2)

    def at_once(llm: Llama, tokens: list[int]) -> list[list[Any]]:
        found = []
        for _ in range(3):
            start.wait(60)
            found.append(compute(llm, tokens))
        return found

    with ThreadPoolExecutor(2) as pool:
        rounds = list(pool.map(at_once, both, prompts))
    for found, expected in zip(rounds, alone, strict=True):
        for one in found:
            for ours, theirs in zip(one, expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)
