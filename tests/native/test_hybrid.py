"""Llama with models that have recurrent layers: DeltaNet, Mamba 1 and 2, short convolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from snapkv_local import Llama, SnapKVConfig
from snapkv_local.errors import ConfigError, UnsupportedModelError

from llama_cpp.llama_speculative import LlamaPromptLookupDecoding  # isort: skip

pytestmark = pytest.mark.native

CONFIG = SnapKVConfig(budget=64, window_size=8, decode_cells=64)
WHOLE = SnapKVConfig(budget=400, window_size=8, decode_cells=64)

Make = Callable[..., Llama]


@pytest.fixture(params=["qwen35-dense", "jamba-dense", "granitehybrid-dense", "lfm2-dense"])
def make(request: pytest.FixtureRequest, arch_models: Path) -> Iterator[Make]:
    path = str(arch_models / f"{request.param}.gguf")
    made = []

    def make(snapkv: SnapKVConfig | None = CONFIG, **kwargs: Any) -> Llama:
        settings = {
            "n_ctx": 512,
            "n_batch": 64,
            "n_ubatch": 64,
            "n_threads": 1,
            "n_threads_batch": 1,
        }
        settings["verbose"] = False
        llm = Llama(path, snapkv=snapkv, flash_attn=True, **{**settings, **kwargs})
        made.append(llm)
        return llm

    yield make
    for llm in made:
        llm.close()


def tokens(n: int, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(3, 128, n).tolist()


def greedy(llm: Llama, prompt: list[int], n: int) -> list[int]:
    found = []
    for token in llm.generate(prompt, temp=0.0):
        found.append(token)
        if len(found) == n:
            break
    return found


def logits(llm: Llama) -> np.ndarray:
    return llm._logits(1)[0].copy()


def test_the_budget_of_a_whole_prompt_is_the_full_cache(make: Make) -> None:
    prompt = tokens(300)
    assert greedy(make(WHOLE), prompt, 20) == greedy(make(None), prompt, 20)


def test_a_prefill_has_the_logits_of_the_full_cache(make: Make) -> None:
    full, ours = make(None), make()
    full.eval(tokens(300))
    stats = ours.prefill(tokens(300))
    assert stats.n_kept == 64
    assert np.array_equal(logits(ours), logits(full))


def test_the_next_turn_goes_on_from_the_state(make: Make) -> None:
    llm, other = make(), make()
    prompt, more = tokens(300), tokens(20, seed=2)
    answer = greedy(llm, prompt, 10)
    evaluated = len(prompt) + len(answer) - 1
    found = greedy(llm, [*prompt, *answer, *more], 10)
    assert llm.n_cached == evaluated

    other.prefill(prompt)
    other.eval(answer[:-1])
    other.eval([answer[-1], *more])
    assert found[0] == int(np.argmax(logits(other)))
    assert found == greedy(other, [*prompt, *answer, *more], 10)


@pytest.mark.parametrize("n_same", [0, 20, 299, 300])
def test_a_prompt_that_goes_back_is_evaluated_anew(make: Make, n_same: int) -> None:
    llm, prompt = make(), tokens(300)
    greedy(llm, prompt, 5)
    other = [*prompt[:n_same], *tokens(300 - n_same, seed=3)]
    found = greedy(llm, other, 10)
    assert llm.last_prefill is not None
    assert llm.last_prefill.n_prompt == 300
    assert llm.n_cached == 0
    assert found == greedy(make(), other, 10)


def test_a_turn_longer_than_the_cells_evicts_from_the_state(make: Make) -> None:
    llm = make()
    answer = greedy(llm, tokens(192), 4)
    turn = [*tokens(192), *answer, *tokens(100, seed=4)]
    greedy(llm, turn, 1)
    assert llm.last_prefill is not None
    assert llm.last_prefill.n_kept == 64
    assert llm.last_prefill.n_prompt == len(turn)


def test_an_answer_longer_than_the_cells_goes_on(make: Make) -> None:
    llm = make()
    answer = greedy(llm, tokens(200), 150)
    assert len(answer) == 150
    assert len(llm.evictions) == 2
    # as if all that was there by then had been the prompt
    n = llm.evictions[-1].n_prompt
    said = [*tokens(200), *answer]
    assert greedy(make(), said[:n], 1) == said[n : n + 1]


def test_sessions(make: Make, tmp_path: Path) -> None:
    llm, other = make(), make()
    answer = greedy(llm, tokens(300), 5)
    llm.save_session(tmp_path / "s.snapkv")
    other.load_session(tmp_path / "s.snapkv")
    turn = [*tokens(300), *answer, *tokens(20, seed=2)]
    assert greedy(other, turn, 10) == greedy(llm, turn, 10)
    assert other.n_cached == llm.n_cached > 300


def test_what_needs_an_earlier_state_is_refused(make: Make) -> None:
    with pytest.raises(UnsupportedModelError, match="turn the vault off"):
        make(SnapKVConfig(budget=64, window_size=8, vault="ram"))
    with pytest.raises(ConfigError, match="recurrent layers have no earlier state"):
        make(draft_model=LlamaPromptLookupDecoding())
    llm = make()
    with pytest.raises(ConfigError, match="turn the vault off"):
        llm.set_snapkv(SnapKVConfig(budget=64, window_size=8, decode_cells=64, vault="ram"))
    assert len(greedy(llm, tokens(300), 3)) == 3


def test_a_policy_in_python_sees_the_attention_layers(make: Make) -> None:
    llm = make(SnapKVConfig(keep_ratio=0.2, window_size=8, policy="value"))
    assert len(greedy(llm, tokens(300), 10)) == 10
    assert llm.kept_positions().shape[0] == len(llm.cached_layers()) >= 3
