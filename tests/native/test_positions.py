"""Models that have learned embeddings of so many positions: beyond them llama.cpp would end the process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from snapkv_local import Llama, SnapKVConfig
from snapkv_local.cli import main
from snapkv_local.errors import ConfigError, LongPromptError, NativeError
from snapkv_local.native import support
from snapkv_local.native.context import ContextOptions, SnapKVContext, our_contexts

from llama_cpp import _internals  # isort: skip

pytestmark = pytest.mark.native

N_POSITIONS = 256
CONFIG = SnapKVConfig(budget=64, window_size=8, decode_cells=64)

Make = Callable[..., Llama]


@pytest.fixture
def make(arch_models: Path) -> Iterator[Make]:
    path = str(arch_models / "gpt2-dense.gguf")
    made = []

    def make(snapkv: SnapKVConfig | None = CONFIG, **kwargs: Any) -> Llama:
        settings: dict[str, Any] = {"n_ctx": N_POSITIONS, "n_batch": 64, "n_ubatch": 64}
        settings |= {"n_threads": 1, "n_threads_batch": 1, "verbose": False}
        llm = Llama(path, snapkv=snapkv, **{**settings, **kwargs})
        made.append(llm)
        return llm

    yield make
    for llm in made:
        llm.close()


@pytest.fixture
def larger(make: Make) -> Callable[[SnapKVConfig | None], Any]:
    """Makes a context of twice as many positions, as a program can that uses the library itself."""
    llm = make()
    params = llm.context_params
    params.n_ctx = 2 * N_POSITIONS

    def larger(config: SnapKVConfig | None) -> Any:
        with our_contexts(None if config is None else ContextOptions(config, keep_scores=False)):
            return _internals.LlamaContext(model=llm._model, params=params, verbose=False)

    return larger


def tokens(n: int, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(3, 128, n).tolist()


def decode(context: Any, n: int, pos0: int) -> None:
    batch = _internals.LlamaBatch(n_tokens=n, embd=0, n_seq_max=1, verbose=False)
    batch.set_batch(batch=tokens(n), n_past=pos0, logits_all=False)
    try:
        context.decode(batch)
    finally:
        batch.close()


@pytest.mark.parametrize("snapkv", [CONFIG, None], ids=["compact", "full"])
def test_a_context_beyond_them_is_refused(make: Make, snapkv: SnapKVConfig | None) -> None:
    with pytest.raises(ConfigError, match=r"n_ctx=257: .* 256 positions.*; give n_ctx=256 or less"):
        make(snapkv, n_ctx=N_POSITIONS + 1)
    llm = make(snapkv)
    assert support.n_positions(llm._model.model) == N_POSITIONS


@pytest.mark.parametrize(
    ("command", "subject"),
    [
        (("plan", "--ctx", "257"), "ctx 257"),
        (("bench", "--n-prompt", "240", "--n-gen", "9", "--budget", "64"), "of 257 tokens"),
    ],
)
def test_commands_refuse_what_lies_beyond(
    arch_models: Path, command: tuple[str, ...], subject: str
) -> None:
    name, *options = command
    model = str(arch_models / "gpt2-dense.gguf")
    result = CliRunner().invoke(main, [name, model, *options], prog_name="snapkv-local")
    assert result.exit_code == 1
    assert f"{subject}: the model has learned embeddings of 256 positions" in result.stderr


def test_other_models_have_no_bound(arch_models: Path) -> None:
    path = str(arch_models / "llama-dense.gguf")
    llm = Llama(path, n_ctx=2 * N_POSITIONS, n_threads=1, n_threads_batch=1, verbose=False)
    assert support.n_positions(llm._model.model) is None
    llm.eval(tokens(N_POSITIONS + 1))
    llm.close()


def test_prompts_turns_and_answers_end_with_them(make: Make) -> None:
    llm = make()
    with pytest.raises(LongPromptError):
        llm.prefill(tokens(N_POSITIONS + 1))
    llm.prefill(tokens(N_POSITIONS - 60))
    with pytest.raises(LongPromptError):
        llm.eval(tokens(61))
    assert sum(1 for _ in llm.generate(tokens(N_POSITIONS - 60), temp=0.0)) == 61
    assert llm.n_tokens == N_POSITIONS


def test_a_compact_context_refuses_what_lies_beyond(larger: Callable[..., Any]) -> None:
    context = larger(CONFIG)
    assert isinstance(context, SnapKVContext)
    beyond = r"256 positions, and -?\d+ is not one of them: make the prompt or its answer shorter"
    with pytest.raises(NativeError, match=beyond):
        context.prefill(np.array(tokens(N_POSITIONS + 1), np.int32))
    short = tokens(N_POSITIONS - 20)
    context.prefill(np.array(short, np.int32))
    with pytest.raises(NativeError, match=beyond):
        decode(context, 21, len(short))
    decode(context, 20, len(short))  # the sequence is as it was
    assert context.extend(len(short), np.array(tokens(21), np.int32)) is None
    with pytest.raises(NativeError, match=beyond):
        decode(context, 1, N_POSITIONS)
    with pytest.raises(NativeError, match=beyond):
        decode(context, 1, -1)
    context.close()


def test_the_full_cache_refuses_what_lies_beyond(larger: Callable[..., Any]) -> None:
    context = larger(None)
    decode(context, 64, 0)
    with pytest.raises(NativeError, match="256 positions, and 256 is not one of them"):
        decode(context, 1, N_POSITIONS)
    context.close()
