"""What a prefill keeps: equal to reference.py, for every layer and head, on an f16 cache."""

import numpy as np
import pytest

from snapkv_local import SnapKVConfig
from snapkv_local.bench.make_model import make_model
from snapkv_local.bench.shapes import SHAPES
from snapkv_local.errors import ConfigError, NativeError, PromptError
from snapkv_local.models.gguf_shape import read_shape
from snapkv_local.models.resolve import needle_model
from snapkv_local.policies import reference

SHAPE = read_shape(needle_model())
N_LAYER, N_HEAD, N_HEAD_KV = SHAPE.n_layer, SHAPE.n_head[0], SHAPE.n_head_kv[0]
HEAD_DIM = SHAPE.head_k
BASE = {"budget": 96, "window_size": 16, "decode_cells": 64}
ROW_BYTES = 2 * N_LAYER * N_HEAD_KV * HEAD_DIM * 2  # K and V in f16, all layers


def logits(llm):
    """[n_vocab] of the last token that was evaluated."""
    return np.ctypeslib.as_array(llm._ctx.get_logits(), shape=(llm.n_vocab(),)).copy()


def assert_same_up_to_ties(kept, score, n_keep, n_sink=0):
    """The same sets, but for rows whose score is within rounding of the last one that stays."""
    expected = reference.select(score, n_keep, n_sink)
    for head, (ours, theirs) in enumerate(zip(kept, expected, strict=True)):
        cut = np.sort(score[head, n_sink:])[-(n_keep - n_sink)]
        for position in set(ours.tolist()) ^ set(theirs.tolist()):
            assert score[head, position] == pytest.approx(cut, rel=1e-3), (head, position)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pooling": "max"},
        {"pooling": "avg", "self_weight": 0},
        {"pooling": "nosink"},
        {"self_weight": 2.5, "kernel_size": 3},
        {"kernel_size": 5, "aggregation": "sum"},
        {"kernel_size": 1},
        {"observation": 7},
        {"window_size": 40, "observation": 9, "aggregation": "sum", "ops": "ggml"},
        {"window_size": 40, "pooling": "max"},
        {"n_sink": 4, "layer_group": 4},
        {"keep_ratio": 0.2, "budget": None, "layer_group": N_LAYER},
        {"ops": "ggml"},
        {"ops": "ggml", "pooling": "max", "aggregation": "max", "n_sink": 4},
        {"ops": "ggml", "pooling": "avg", "self_weight": 0},
        {"ops": "ggml", "pooling": "nosink"},
        {"ops": "ggml", "kernel_size": 1},
    ],
    ids=lambda settings: ",".join(map(str, settings)) or "default",
)
def test_scores_and_kept_rows_are_the_references(make, prompt, tap, settings):
    config = SnapKVConfig(**{**BASE, **settings})
    llm = make(config, keep_scores=True)
    seen = tap(llm, prompt)
    n_prefix = len(prompt) - config.window_size
    n_keep = config.n_kept(len(prompt)) - config.window_size
    kept, scores = llm.kept_positions(), llm.prefill_scores()

    assert [layer["ic"] for layer in seen] == list(range(N_LAYER))
    assert (kept.shape, kept.dtype) == ((N_LAYER, N_HEAD_KV, n_keep), np.int32)
    assert (scores.shape, scores.dtype) == ((N_LAYER, N_HEAD_KV, n_prefix), np.float32)
    assert (np.diff(kept, axis=-1) > 0).all()
    coverage = []
    for layer in seen:
        ic, q, k, scale = (layer[name] for name in ("ic", "q", "k", "scale"))
        assert q.shape == (N_HEAD, config.window_size, HEAD_DIM)
        assert k.shape == (N_HEAD_KV, len(prompt), HEAD_DIM)
        assert (scale, layer["softcap"]) == (0.125, 0.0)
        q = q[:, -config.n_voters() :]
        expected = reference.scores(
            q,
            k,
            scale,
            kernel_size=config.kernel_size,
            pooling=config.pooling,
            aggregation=config.aggregation,
            self_weight=config.self_weight,
        )[:, :n_prefix]
        np.testing.assert_allclose(scores[ic], expected, rtol=2e-3, atol=1e-6)
        assert_same_up_to_ties(kept[ic], expected, n_keep, config.n_sink)
        # from the engine's own scores there is nothing to round
        assert_same_up_to_ties(kept[ic], scores[ic].astype(np.float64), n_keep, config.n_sink)
        coverage.append(reference.coverage(q, k, scale, kept[ic], config.window_size))
    np.testing.assert_allclose(llm.coverage(), coverage, rtol=1e-3)
    assert llm.last_prefill.coverage == pytest.approx(np.mean(coverage), rel=1e-3)
    if config.n_sink:
        assert (kept[:, :, : config.n_sink] == np.arange(config.n_sink)).all()


def test_stock_ops_keep_what_fused_ops_keep(make, prompt):
    found = {}
    for ops in ("fused", "ggml", "auto"):
        llm = make(SnapKVConfig(**BASE, ops=ops), keep_scores=True)
        stats = llm.prefill(prompt)
        found[ops] = stats, llm.kept_positions(), llm.prefill_scores(), logits(llm)
    ratios = {ops: stats.ratio_fused for ops, (stats, *_) in found.items()}
    assert ratios == {"fused": 1, "ggml": 0, "auto": 1}  # the CPU has them

    (fused, kept, scores, last), (stock, _, stock_scores, stock_last) = (
        found[ops] for ops in ("fused", "ggml")
    )
    np.testing.assert_allclose(scores, stock_scores, rtol=2e-3, atol=1e-6)
    for ic in range(N_LAYER):
        assert_same_up_to_ties(kept[ic], stock_scores[ic].astype(np.float64), 80)
    assert fused.coverage == pytest.approx(stock.coverage, rel=1e-3)
    np.testing.assert_array_equal(last, stock_last)  # evaluated before anything is evicted
    np.testing.assert_array_equal(kept, found["auto"][1])


def test_nothing_evicted_is_nothing_fused(llm, prompt):
    stats = llm.prefill(prompt[:96])
    assert (stats.layer_group, stats.ratio_fused, stats.coverage) == (0, 0, 1)


def test_shapes_that_fused_ops_do_not_take(make, prompt):
    settings = {**BASE, "kernel_size": 129}  # 127 at most
    with pytest.raises(NativeError, match=r"CPU has no fused ops for layer 0 .*: set ops to auto"):
        make(SnapKVConfig(**settings, ops="fused")).prefill(prompt)
    llm = make(SnapKVConfig(**settings))
    assert llm.prefill(prompt).ratio_fused == 0
    assert llm.kept_positions().shape == (N_LAYER, N_HEAD_KV, 80)


@pytest.mark.parametrize("n_ubatch", [64, 256, 512])
def test_the_setting_n_ubatch_is_what_llamas_would_be(make, prompt, greedy, n_ubatch):
    """Llama's is 128: the setting may be smaller, larger, or larger than the prompt, which it then is."""
    chosen = make(SnapKVConfig(**BASE, n_ubatch=n_ubatch))
    other = make(n_batch=512, n_ubatch=n_ubatch)
    assert [llm.prefill(prompt).n_ubatch for llm in (chosen, other)] == [
        min(n_ubatch, len(prompt))
    ] * 2
    np.testing.assert_array_equal(logits(chosen), logits(other))
    np.testing.assert_array_equal(chosen.kept_positions(), other.kept_positions())
    assert greedy(chosen, prompt, 8) == greedy(other, prompt, 8)


@pytest.mark.parametrize("keep_ratio", [0.5, 0.7, 1 / 3])
def test_a_ratio_keeps_as_many_rows_as_the_configuration_says(make, prompt, keep_ratio):
    # 0.7 of 110 rows is 77, and 76.99999... in float32
    config = SnapKVConfig(keep_ratio=keep_ratio, window_size=16, decode_cells=64)
    llm = make(config)
    stats = llm.prefill(prompt[:126])
    assert stats.n_kept == config.n_kept(126)
    assert llm.kept_positions().shape[-1] == stats.n_kept - 16


def test_figures_of_a_prefill(llm, prompt):
    stats = llm.prefill(prompt)
    assert stats is llm.last_prefill
    assert (stats.n_prompt, stats.n_kept, stats.layer_group, stats.n_ubatch) == (300, 96, 1, 128)
    # cells come in multiples of 32
    assert stats.bytes_kv == ROW_BYTES * 160
    # full cells in multiples of 256
    assert stats.bytes_kv_full == ROW_BYTES * 512
    assert stats.bytes_kv_group == stats.bytes_kv_full // N_LAYER
    assert stats.bytes_hidden >= 300 * N_HEAD * HEAD_DIM * 4
    # the CPU's memory is the host's, and beside no GPU
    assert (stats.bytes_hidden_host, stats.bytes_weights_lent) == (0, 0)
    assert stats.ratio_fused == 1
    assert stats.bytes_mask > 128 * 512 * 2
    assert stats.bytes_compute > 0
    assert 0 < stats.coverage < 1
    assert 0 < stats.seconds_score + stats.seconds_evict < stats.seconds_prefill


def test_the_layer_group_changes_memory_and_nothing_else(make, llm, prompt, greedy):
    one = llm.prefill(prompt)
    expected = llm.kept_positions(), greedy(llm, prompt, 8)
    other = make(SnapKVConfig(**BASE, layer_group=N_LAYER))
    all_layers = other.prefill(prompt)
    assert all_layers.layer_group == N_LAYER
    assert all_layers.bytes_kv_group == N_LAYER * one.bytes_kv_group
    np.testing.assert_array_equal(other.kept_positions(), expected[0])
    assert greedy(other, prompt, 8) == expected[1]


@pytest.mark.parametrize("kv_type", ["q8_0", "q4_0"])
def test_quantized_caches(make, prompt, greedy, kv_type):
    import llama_cpp

    ggml_type = getattr(llama_cpp, f"GGML_TYPE_{kv_type.upper()}")
    small = make(type_k=ggml_type, type_v=ggml_type)
    stats = small.prefill(prompt[:130])
    assert stats.bytes_kv < ROW_BYTES * 160 * 0.6
    assert small.kept_positions().shape == (N_LAYER, N_HEAD_KV, 80)
    assert len(set(greedy(small, prompt, 8))) > 1


def test_types_of_k_and_v_may_differ(make, prompt, greedy):
    import llama_cpp

    llm = make(type_k=llama_cpp.GGML_TYPE_Q8_0, type_v=llama_cpp.GGML_TYPE_F16)
    exact = make()
    for each in (llm, exact):
        each.prefill(prompt[:130])
    # K in 8.5 bits, V in 16
    assert exact.last_prefill.bytes_kv * 0.7 < llm.last_prefill.bytes_kv
    assert llm.last_prefill.bytes_kv < exact.last_prefill.bytes_kv * 0.85
    assert llm.last_prefill.ratio_fused == 1
    same = llm.kept_positions() == exact.kept_positions()
    assert np.mean(same) > 0.3
    assert len(set(greedy(llm, prompt, 8))) > 1


def test_one_repeated_token_has_finite_scores(llm, prompt):
    stats = llm.prefill([prompt[7]] * 150)
    scores = llm.prefill_scores()
    assert np.isfinite(scores).all()
    assert (scores >= 0).all()
    assert np.isfinite(stats.coverage)
    assert np.isfinite(llm.logits_for([prompt[7]])).all()


def test_prefill_of_no_tokens(llm):
    with pytest.raises(PromptError, match="prompt: is empty"):
        llm.prefill([])


def test_prefill_beyond_the_context(llm, prompt, greedy):
    with pytest.raises(
        PromptError, match="prompt of 1025 tokens: is longer than the context of 1024; raise n_ctx"
    ):
        llm.prefill([prompt[0]] * 1025)
    assert len(greedy(llm, prompt[:130], 4)) == 4


def test_a_prompt_that_fills_the_context(make, prompt):
    llm = make(n_ctx=256)
    assert llm.prefill(prompt[:256]).n_prompt == 256


def test_scores_that_were_not_kept(make, prompt):
    llm = make()
    llm.prefill(prompt[:130])
    with pytest.raises(ConfigError, match="the last prefill has kept none; pass keep_scores=True"):
        llm.prefill_scores()


def test_coverage_of_a_prompt_that_was_left_alone(make, prompt):
    llm = make()
    llm.prefill(prompt[:20])
    with pytest.raises(ConfigError, match="the last prefill has evicted nothing; prefill a prompt"):
        llm.coverage()


def test_progress_counts_up_to_the_total(llm, prompt):
    seen = []
    llm.prefill(prompt, progress=lambda done, total: seen.append((done, total)))
    done = [d for d, _ in seen]
    assert {total for _, total in seen} == {300 * N_LAYER}
    assert done == sorted(done)
    assert done[0] < 300 * N_LAYER
    assert done[-1] == 300 * N_LAYER


def test_a_window_larger_than_a_ubatch(make, prompt, tap):
    llm = make(SnapKVConfig.paper(budget=160, window_size=150, decode_cells=64))
    seen = tap(llm, prompt[:200])
    expected = reference.scores(seen[5]["q"], seen[5]["k"], seen[5]["scale"])
    assert seen[5]["q"].shape[1] == 150
    assert_same_up_to_ties(llm.kept_positions()[5], expected, 10)


def test_a_prompt_of_very_many_chunks_starts(make, tmp_path):
    """What is reserved for the longest graph must fit into the mask, however long that is."""
    path = tmp_path / "tiny.gguf"
    make_model(SHAPES["tiny"], "q8_0", path, name="Tiny")
    n_prompt = 20_000  # chunks of 32 have a mask of 32 rows with 512 columns to spare
    llm = make(SnapKVConfig(**BASE, n_ubatch=32), str(path), n_ctx=n_prompt + 64)

    class Enough(Exception):
        pass

    def progress(done, _total):
        if done > 100:
            raise Enough

    with pytest.raises(Enough):
        llm.prefill([1 + i % 50 for i in range(n_prompt)], progress)
