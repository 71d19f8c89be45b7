"""Several sequences of one native context, each an object of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refused import refused
from tiny_llama import CHUNK, tokens

from snapkv_local import SnapKVConfig
from snapkv_local.errors import ConfigError, NativeError
from snapkv_local.native import vault
from snapkv_local.native.context import ContextOptions, SnapKVContext, our_contexts

from llama_cpp import _internals, _logger, llama_cpp  # isort: skip

pytestmark = pytest.mark.native

CONFIG = SnapKVConfig(budget=64, window_size=8, decode_cells=64, vault="ram")


@pytest.fixture(params=["qwen35-dense", "gemma3-dense"])
def context(request: pytest.FixtureRequest, arch_models: Path) -> Iterator[SnapKVContext]:
    _logger.set_verbose(False)  # as Llama does
    model = _internals.LlamaModel(
        path_model=str(arch_models / f"{request.param}.gguf"),
        params=llama_cpp.llama_model_default_params(),
        verbose=False,
    )
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 512, CHUNK, CHUNK
    params.n_threads = params.n_threads_batch = 1
    with our_contexts(ContextOptions(CONFIG, keep_scores=False, n_seq=3)):
        yield _internals.LlamaContext(model=model, params=params, verbose=False)
    model.close()


def step(context: SnapKVContext, token: int, pos: int) -> Any:
    """The logits after one more token."""
    batch = _internals.LlamaBatch(n_tokens=1, embd=0, n_seq_max=1, verbose=False)
    batch.set_batch(batch=[token], n_past=pos, logits_all=True)
    context.decode(batch)
    batch.close()
    return np.ctypeslib.as_array(context.get_logits(), (1, context.model.n_vocab())).copy()


def test_a_sequence_is_as_if_it_were_alone(context: SnapKVContext) -> None:
    of = [context.of_sequence(i) for i in range(3)]
    alone = []
    for i in range(3):
        of[1].prefill(np.array(tokens(300 + i, seed=i), np.int32))
        alone.append((of[1].kept(), step(of[1], 5, 300 + i)))
        of[1].clear_vault()
    for i in range(3):
        of[i].prefill(np.array(tokens(300 + i, seed=i), np.int32))
    for i in range(3):
        assert np.array_equal(of[i].kept(), alone[i][0])
        assert vault.tokens(of[i]).tolist() == tokens(300 + i, seed=i)
        assert np.array_equal(step(of[i], 5, 300 + i), alone[i][1])


def test_each_sequence_has_settings_of_its_own(context: SnapKVContext) -> None:
    other = context.of_sequence(2)
    other.set_config(
        ContextOptions(SnapKVConfig(budget=32, window_size=8, decode_cells=64), keep_scores=False)
    )
    prompt = np.array(tokens(300), np.int32)
    assert [c.prefill(prompt).n_kept for c in (context, other, context)] == [64, 32, 64]
    other.kv_cache_seq_rm(-1, -1, -1)
    assert other.n_compacted() == 0
    assert context.n_compacted() == 300


def test_others_decode_between_the_chunks_of_a_prefill(context: SnapKVContext) -> None:
    long, other = np.array(tokens(300), np.int32), context.of_sequence(2)

    def prefilled() -> None:
        other.prefill(np.array(tokens(100), np.int32))

    prefilled()
    context.prefill(long)
    alone, kept = step(context, 5, 300), context.kept()
    expected = [step(other, 5 + i, 100 + i) for i in range(9)]

    found: list[Any] = []

    def decode() -> None:
        if len(found) < len(expected):
            found.append(step(other, 5 + len(found), 100 + len(found)))

    other.clear_vault()
    context.clear_vault()
    prefilled()
    context.prefill(long, others=decode)
    assert len(found) > 2
    assert np.array_equal(found, expected[: len(found)])
    assert np.array_equal(context.kept(), kept)
    assert np.array_equal(step(context, 5, 300), alone)


def test_what_others_raise_ends_the_prefill(context: SnapKVContext) -> None:
    other = context.of_sequence(1)
    other.prefill(np.array(tokens(100), np.int32))

    def decode_the_prefilled_one() -> None:
        step(context, 5, 300)

    with refused(NativeError, "a batch of tokens"):
        context.prefill(np.array(tokens(300), np.int32), others=decode_the_prefilled_one)
    assert context.n_compacted() == 0
    assert other.n_compacted() == 100


def test_an_object_of_a_sequence_is_no_owner(context: SnapKVContext) -> None:
    other = context.of_sequence(1)
    assert other is context.of_sequence(1)
    assert other.of_sequence(0) is context
    assert context.n_ctx() == 512
    other.close()
    context.prefill(np.array(tokens(300), np.int32))
    context.close()
    assert other.ctx is None


@pytest.mark.parametrize("seq_id", [-1, 3])
def test_a_sequence_that_there_is_not_is_refused(context: SnapKVContext, seq_id: int) -> None:
    with refused(ConfigError, f"sequence {seq_id}"):
        context.of_sequence(seq_id)
