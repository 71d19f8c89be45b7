"""A step of several conversations that fails: only the one that is to blame has an error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from at_once import at_once
from tiny_llama import Make, greedy, logits, maker, tokens

from snapkv_local import Llama, SnapKVConfig
from snapkv_local.errors import SnapKVError
from snapkv_local.native import steps

CONFIG = SnapKVConfig(budget=64, window_size=8, decode_cells=64)
PROMPTS = [tokens(200, 1), tokens(40, 2), tokens(90, 3)]
NEXT = tokens(8, 4)


@pytest.fixture(scope="module", params=["lfm2-dense", "qwen35-dense", "gemma3-dense"])
def make(arch_models: Path, request: pytest.FixtureRequest) -> Iterator[Make]:
    with maker(arch_models / f"{request.param}.gguf", CONFIG) as make:
        yield make


@pytest.fixture(scope="module")
def expected(make: Make) -> list[list[np.ndarray]]:
    """Of each prompt alone: the logits of the tokens that come next."""
    alone, found = make(), []
    for prompt in PROMPTS:
        alone.reset()
        alone.eval(prompt)
        found.append([after(alone, token) for token in NEXT])
    return found


@pytest.fixture
def several(make: Make) -> list[Llama]:
    """Conversations whose prompts have been evaluated."""
    first = make(n_parallel=len(PROMPTS))
    llms = [first, *(first.conversation() for _ in PROMPTS[1:])]
    for llm, prompt in zip(llms, PROMPTS, strict=True):
        llm.eval(prompt)
    return llms


def after(llm: Llama, token: int) -> np.ndarray:
    llm.eval([token])
    return logits(llm)


def step(llms: list[Llama], token: int, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What each gets of a step that all share: logits, or an error."""
    monkeypatch.setattr(steps, "_PATIENCE", 60.0)
    gate = llms[0]._ctx.gate
    with gate:
        gate.seconds_step, gate.decoding = 60.0, {llm.seq_id for llm in llms}
    return at_once([partial(after, llm, token) for llm in llms], errors=SnapKVError)


@contextmanager
def failing(
    llm: Llama, when: Callable[[list[int]], bool], how: Callable[[], Any]
) -> Iterator[list[list[int]]]:
    """Sequences of the batches that fail: those of which `when` is true, in the way of `how`."""
    shared = llm._ctx._steps
    together, failed = shared._together, []

    def decode(batch: list[Any]) -> None:
        sequences = [each.seq_id for each in batch]
        if not when(sequences):
            together(batch)
            return
        failed.append(sequences)
        with how():
            together(batch)

    shared._together = decode
    try:
        yield failed
    finally:
        shared._together = together


def close(found: np.ndarray, expected: np.ndarray) -> None:
    # a batch of several tokens is summed in another order
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


@contextmanager
def no_memory() -> Iterator[None]:
    """Where the cells of a batch are chosen and its graph is to be built."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SNAPKV_TEST_FAIL_ALLOC", "step")
        yield


@pytest.mark.parametrize("culprit", [0, 1, 2])
def test_a_step_without_memory_fails_for_one(
    several: list[Llama],
    expected: list[list[np.ndarray]],
    monkeypatch: pytest.MonkeyPatch,
    culprit: int,
) -> None:
    for found, rows in zip(step(several, NEXT[0], monkeypatch), expected, strict=True):
        close(found, rows[0])
    with failing(several[0], lambda sequences: culprit in sequences, no_memory) as failed:
        found = step(several, NEXT[1], monkeypatch)
    assert failed == [[0, 1, 2], [culprit]]
    assert [isinstance(each, SnapKVError) for each in found] == [i == culprit for i in range(3)]
    for i in {0, 1, 2} - {culprit}:
        close(found[i], expected[i][1])
    # nothing was computed, so the culprit can do it again
    close(after(several[culprit], NEXT[1]), expected[culprit][1])
    for found, rows in zip(step(several, NEXT[2], monkeypatch), expected, strict=True):
        close(found, rows[2])


def test_those_that_wait_lose_nothing(
    several: list[Llama], expected: list[list[np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first and the last one share a step; the state of the one between them has to make room."""
    ends = [several[0], several[2]]
    with failing(several[0], lambda sequences: 2 in sequences, no_memory):
        found = step(ends, NEXT[0], monkeypatch)
    close(found[0], expected[0][0])
    assert isinstance(found[1], SnapKVError)
    close(after(several[1], NEXT[0]), expected[1][0])
    close(after(several[2], NEXT[0]), expected[2][0])


def test_a_step_that_ends_within_is_computed_anew(
    several: list[Llama],
    expected: list[list[np.ndarray]],
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A part of a graph has been computed: a recurrent state is then neither that before nor that behind."""
    from llama_cpp import llama_cpp  # only now: our package has said which library

    n_asked = 0

    def ask(_: Any) -> bool:
        nonlocal n_asked
        n_asked += 1
        return n_asked > 20  # nodes

    callback = llama_cpp.ggml_abort_callback(ask)
    native = several[0]._ctx.ctx

    @contextmanager
    def ends() -> Iterator[None]:
        nonlocal n_asked
        n_asked = 0
        llama_cpp.llama_set_abort_callback(native, callback, None)
        try:
            yield
        finally:
            llama_cpp.llama_set_abort_callback(native, llama_cpp.ggml_abort_callback(0), None)

    with failing(several[0], lambda sequences: len(sequences) == 2, ends) as failed:
        found = step(several[:2], NEXT[0], monkeypatch)
    assert failed == [[0, 1]]
    hybrid = several[0]._ctx.is_hybrid
    # where attention alone has cells, each does it again
    assert [isinstance(each, SnapKVError) for each in found] == [hybrid] * 2
    close(after(several[2], NEXT[0]), expected[2][0])
    whole = [*PROMPTS[1], NEXT[0]]
    again = greedy(several[1], [*whole, NEXT[1]], 4)
    assert again == greedy(make(), [*whole, NEXT[1]], 4)
