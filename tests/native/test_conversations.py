"""Several conversations of models with recurrent layers and with sliding windows: each is as it is alone."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from at_once import at_once
from tiny_llama import logits, maker, tokens

from snapkv_local import Llama, SnapKVConfig
from snapkv_local.server.pool import Pool
from snapkv_local.server.resting import Resting

CONFIG = SnapKVConfig(budget=64, window_size=8, decode_cells=64)
VAULT = SnapKVConfig(budget=64, window_size=8, decode_cells=64, vault="ram")
N_ANSWER = 5


def answer(llm: Llama, prompt: list[int]) -> tuple[list[int], np.ndarray]:
    """The likeliest tokens behind a prompt, and the logits of each: [n, n_vocab]."""
    found, rows = [], []
    for token in llm.generate(prompt, temp=0.0):
        found.append(token)
        rows.append(logits(llm))
        if len(found) == N_ANSWER:
            break
    llm.end_answer()
    return found, np.array(rows)


@pytest.mark.parametrize("config", [CONFIG, VAULT], ids=["compact", "vault"])
@pytest.mark.parametrize("arch", ["lfm2-dense", "gemma3-dense"])
def test_each_is_as_it_is_alone(
    arch_models: Path, tmp_path: Path, arch: str, config: SnapKVConfig
) -> None:
    with maker(arch_models / f"{arch}.gguf", config) as make:
        alone, several = make(), make(n_parallel=2)
        other = several.conversation()
        prompts = [tokens(200, 1), tokens(40, 2)]
        together = at_once(
            [
                partial(answer, llm, prompt)
                for llm, prompt in zip((several, other), prompts, strict=True)
            ]
        )
        for prompt, found in zip(prompts, together, strict=True):
            expected = answer(alone, prompt)
            assert found[0] == expected[0]
            np.testing.assert_allclose(found[1], expected[1], rtol=1e-3, atol=1e-3)
        other.close()

        # more than there are places, one after the other: equal batches, and so equal bits
        several.reset()
        several.clear_vault()
        pool = Pool(several, Resting(1 << 16, tmp_path, 1 << 30))
        texts = {talk: tokens(90 + talk, 10 + talk) for talk in range(4)}
        seen: dict[int, list[Any]] = {talk: [] for talk in texts}
        for talk in (0, 1, 2, 0, 3, 1, 0, 2, 3, 1):
            with pool.llama() as llm:
                llm.place = lambda prompt, llm=llm: pool.place(llm, prompt, config)
                said, rows = answer(llm, texts[talk])
                assert not seen[talk] or config.vault != "off" or llm.n_cached > 80
            seen[talk].append((list(texts[talk]), said, rows))
            texts[talk] += [*said, *tokens(10, len(seen[talk]))]
        assert list(tmp_path.iterdir())
        for turns in seen.values():
            alone.reset()
            if config.vault != "off":
                alone.clear_vault()
            for text, said, rows in turns:
                expected = answer(alone, text)
                assert said == expected[0]
                np.testing.assert_array_equal(rows, expected[1])
        pool.close()
