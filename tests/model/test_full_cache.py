"""Where nothing is evicted, answers are those of llama_cpp.Llama."""

import llama_cpp
import numpy as np
import pytest
from refused import refused

from snapkv_local import Llama, SnapKVConfig
from snapkv_local.errors import ConfigError
from snapkv_local.native.context import SnapKVContext


@pytest.fixture(scope="module")
def upstream(model_path):
    llm = llama_cpp.Llama(
        model_path,
        n_ctx=1024,
        n_batch=256,
        n_ubatch=128,
        n_threads=1,
        flash_attn=True,
        verbose=False,
        logits_all=True,
    )
    yield llm
    llm.close()


def logits(llm, tokens):
    llm.reset()
    llm.eval(tokens)
    return np.ctypeslib.as_array(llm._ctx.get_logits(), shape=(1, llm.n_vocab())).copy()


def test_without_snapkv_logits_are_those_of_llama_cpp(plain, upstream, prompt):
    upstream.reset()
    upstream.eval(prompt)
    np.testing.assert_array_equal(logits(plain, prompt)[0], upstream.scores[len(prompt) - 1])


def test_without_snapkv_tokens_are_those_of_llama_cpp(plain, upstream, prompt, greedy):
    assert greedy(plain, prompt, 16) == greedy(upstream, prompt, 16)


def test_without_snapkv_nothing_is_replaced(plain):
    assert not isinstance(plain._ctx, SnapKVContext)
    assert plain.snapkv is None
    assert plain.last_prefill is None


@pytest.mark.parametrize("method", ["coverage", "kept_positions", "prefill_scores"])
def test_without_snapkv_there_is_nothing_to_ask(plain, method):
    with refused(ConfigError, f"{method}()"):
        getattr(plain, method)()


def test_without_snapkv_prefill_is_refused(plain, prompt):
    wording = r"prefill\(\): this Llama was made without snapkv; pass snapkv=SnapKVConfig\(\.\.\.\)"
    with pytest.raises(ConfigError, match=wording):
        plain.prefill(prompt)


def test_scores_cannot_be_kept_without_snapkv(model_path):
    with pytest.raises(ConfigError, match="there are no scores without snapkv"):
        Llama(model_path, keep_scores=True)


def test_progress_is_reported_with_the_full_cache_too(plain, prompt):
    seen = []
    plain.prefill_progress = lambda done, total: seen.append((done, total))
    expected = logits(plain, prompt)
    plain.prefill_progress = None
    assert seen == [(256, 300), (300, 300)]
    np.testing.assert_array_equal(expected, logits(plain, prompt))


@pytest.mark.parametrize("budget", [300, 512])
def test_a_prompt_up_to_the_budget_gives_the_tokens_of_the_full_cache(
    make, plain, prompt, greedy, budget
):
    llm = make(SnapKVConfig(budget=budget, decode_cells=64))
    assert greedy(llm, prompt, 32) == greedy(plain, prompt, 32)
    assert llm.last_prefill is None  # the ordinary path


def test_prefill_of_a_prompt_up_to_the_budget_says_that_all_stays(make, plain, prompt, greedy):
    llm = make(SnapKVConfig(budget=300, decode_cells=64))
    stats = llm.prefill(prompt)
    assert (stats.n_prompt, stats.n_kept, stats.layer_group) == (300, 300, 0)
    assert stats.coverage == 1.0
    assert stats.bytes_kv_group == stats.bytes_hidden == stats.bytes_mask == 0
    assert greedy(llm, prompt, 16) == greedy(plain, prompt, 16)
    with pytest.raises(ConfigError, match="the prompt was not compressed"):
        llm.kept_positions()


@pytest.mark.parametrize("settings", [{"budget": 96}, {"keep_ratio": 0.1}])
def test_a_prompt_within_the_window_is_not_compressed(make, prompt, settings):
    llm = make(SnapKVConfig(**settings, window_size=32, decode_cells=64))
    for n in (1, 31, 32):
        assert llm.prefill(prompt[:n]).n_kept == n


@pytest.mark.parametrize(
    "config", [None, SnapKVConfig(budget=96)], ids=["snapkv=None", "compressing"]
)
def test_a_vocabulary_alone_tokenizes_and_evaluates_nothing(make, model_path, config):
    vocabulary = make(config, vocab_only=True)
    assert vocabulary.tokenize(b"Hello World") == make(None).tokenize(b"Hello World")
    with pytest.raises(ConfigError, match="vocab_only"):
        vocabulary.create_completion("Hello World", max_tokens=1)
    with pytest.raises(ConfigError, match="vocab_only"):
        vocabulary.logits_for([1])
