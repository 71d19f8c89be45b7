"""Drafts of a model's own prediction head: whatever it guesses, the answer is the model's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from at_once import at_once
from headed import with_head
from refused import refused
from tiny_llama import Make, greedy, maker, tokens

from snapkv_local import HeadDraft, SnapKVConfig
from snapkv_local.config import HEAD_CELLS
from snapkv_local.errors import ConfigError, UnsupportedModelError
from snapkv_local.native import head
from snapkv_local.plan import fit
from snapkv_local.plan.layers import CPU
from snapkv_local.plan.model import read_model

pytestmark = pytest.mark.native

CONFIG = SnapKVConfig(budget=64, window_size=8, decode_cells=64)
ARCHS = ["qwen35-dense", "glm4moe-moe"]


class Noted(HeadDraft):
    """Notes what it has guessed: after which token, and which ones."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.guesses: list[tuple[int, list[int]]] = []

    def __call__(self, input_ids: npt.NDArray[np.intc], /, **kwargs: Any) -> npt.NDArray[np.intc]:
        """As HeadDraft does."""
        found = super().__call__(input_ids, **kwargs)
        self.guesses.append((int(input_ids[-1]), found.tolist()))
        return found


@pytest.fixture(scope="module")
def headed(arch_models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models with a head, by the names of those without; of "echo" and a name, one that echoes."""
    folder = tmp_path_factory.mktemp("heads")
    found = {}
    for arch in (*ARCHS, "qwen35moe-moe"):
        source = arch_models / f"{arch}.gguf"
        found[arch] = with_head(source, folder / f"{arch}.gguf")
        found[f"echo {arch}"] = with_head(source, folder / f"echo-{arch}.gguf", echoes=True)
    return found


@pytest.fixture(params=ARCHS)
def make(request: pytest.FixtureRequest, headed: dict[str, Path]) -> Iterator[Make]:
    with maker(headed[request.param], CONFIG) as make:
        yield make


@pytest.fixture(params=ARCHS)
def make_echo(request: pytest.FixtureRequest, headed: dict[str, Path]) -> Iterator[Make]:
    with maker(headed[f"echo {request.param}"], CONFIG) as make:
        yield make


@pytest.mark.parametrize("n_max", [1, 3])
def test_drafts_of_a_head_change_no_token(make: Make, n_max: int) -> None:
    plain = make()
    expected = greedy(plain, tokens(300), 100)
    llm = make(draft_model=HeadDraft(n_max=n_max))
    assert greedy(llm, tokens(300), 100) == expected
    assert llm.n_drafted > 40 * n_max
    assert [e.n_prompt for e in llm.evictions] == [e.n_prompt for e in plain.evictions]
    # and the next turn
    llm.end_answer()
    turn = [*tokens(300), *expected, *tokens(20, seed=2)]
    assert greedy(llm, turn, 10) == greedy(plain, turn, 10)


@pytest.mark.parametrize("n_cells", [1024, 24])
def test_a_head_gets_the_state_before_each_token(
    make_echo: Make, n_cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "HEAD_CELLS", n_cells)
    expected = greedy(make_echo(), tokens(300), 60)
    draft = Noted(n_max=3)
    assert greedy(make_echo(draft_model=draft), tokens(300), 60) == expected
    guesses = [guess for guess in draft.guesses if guess[1]]
    # a prefill keeps no states, and recurrent layers go back after a guess that was wrong
    assert len(guesses) > 25
    assert all(guessed == 3 * [token] for token, guessed in guesses)


def test_conversations_with_heads_share_steps(make_echo: Make) -> None:
    prompts = [tokens(n, seed) for seed, n in enumerate((300, 40), 1)]
    expected = [greedy(make_echo(), prompt, 40) for prompt in prompts]
    first = make_echo(n_parallel=2, draft_model=Noted(n_max=2))
    both = [first, first.conversation()]

    def answer(i: int) -> list[int]:
        found = greedy(both[i], prompts[i], 40)
        both[i].end_answer()
        return found

    assert at_once([partial(answer, i) for i in range(2)]) == expected
    for llm in both:
        draft = llm.draft_model
        assert isinstance(draft, Noted)
        assert sum(len(guessed) for _, guessed in draft.guesses) >= 20
        assert all(set(guessed) <= {token} for token, guessed in draft.guesses)


def test_heads_with_experts_and_recurrent_layers(headed: dict[str, Path]) -> None:
    with maker(headed["echo qwen35moe-moe"], CONFIG) as make:
        draft = Noted(n_max=2)
        assert greedy(make(draft_model=draft), tokens(200), 30) == greedy(make(), tokens(200), 30)
        assert len([guessed for _, guessed in draft.guesses if guessed]) > 10
        assert all(set(guessed) <= {token} for token, guessed in draft.guesses)


def test_heads_beside_the_full_cache(headed: dict[str, Path]) -> None:
    with maker(headed["echo glm4moe-moe"], CONFIG) as make:
        draft = Noted(n_max=2)
        llm = make(None, draft_model=draft)
        assert greedy(llm, tokens(200), 20) == greedy(make(None), tokens(200), 20)
        assert any(guessed == 2 * [token] for token, guessed in draft.guesses)


def test_heads_that_cannot_guess_are_refused(make: Make, arch_models: Path) -> None:
    with refused(ConfigError, "draft_model"):
        make().set_draft_model(HeadDraft())
    draft = HeadDraft()
    make(draft_model=draft)
    with refused(ConfigError, "draft_model"):
        make(load_mtp=True).set_draft_model(draft)
    path = arch_models / "llama-dense.gguf"
    with maker(path, CONFIG) as make_other, refused(UnsupportedModelError, path):
        make_other(draft_model=HeadDraft())
    with refused(ConfigError, "p_min=2"):
        HeadDraft(p_min=2)


def test_a_plan_counts_heads(headed: dict[str, Path]) -> None:
    path = headed["qwen35-dense"]
    model = read_model(path)
    tensors = [t for t in gguf.GGUFReader(path).tensors if t.name.startswith("blk.7.")]
    assert model.bytes_heads == sum(t.n_bytes for t in tensors) > 0
    task = fit.Task(model, CONFIG, "f16", CPU, 2**40)
    alone, both = (each.auto(400) for each in (task, dataclasses.replace(task, heads=True)))
    row = max(model.shape.n_head_kv) * (model.shape.head_k + model.shape.head_v)
    cache = HEAD_CELLS * 2 * row
    assert both.parts["heads"].main == model.bytes_heads + cache
    assert both.parts["looks"] == alone.parts["recurrent"]
    whole = dataclasses.replace(task, heads=True).plain("f16", 400).parts["heads"].main
    assert whole == model.bytes_heads + (400 + CONFIG.decode_cells) * 2 * row
    assert both.peak == alone.peak + both.parts["heads"].main + both.parts["looks"].main
