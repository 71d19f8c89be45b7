"""The vault: K and V of the whole prompt in host memory, from which rows are chosen anew."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from snapkv_local import Llama, SnapKVConfig
from snapkv_local.errors import ConfigError, NativeError, NoRoomError
from snapkv_local.models.gguf_shape import ModelShape
from snapkv_local.policies import reference

WINDOW = 16
VAULT = SnapKVConfig.paper(budget=96, window_size=WINDOW, decode_cells=64, vault="ram")


@pytest.fixture(scope="module")
def vaulted(make: Callable[..., Llama]) -> Llama:
    """Cells for a compact cache only."""
    return make(VAULT, keep_queries=40)


@pytest.fixture(scope="module")
def without(make: Callable[..., Llama]) -> Llama:
    """As vaulted, without a vault."""
    return make(replace(VAULT, vault="off"))


@pytest.fixture(scope="module")
def roomy(make: Callable[..., Llama]) -> Llama:
    """Cells for the whole prompt."""
    return make(replace(VAULT, budget=512))


@pytest.fixture(autouse=True)
def empty(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test starts with an empty vault."""
    yield
    for name in ("vaulted", "roomy"):
        if name in request.fixturenames:
            llm = request.getfixturevalue(name)
            llm.clear_vault()


@pytest.fixture(scope="module")
def answer(llm: Llama) -> list[int]:
    return llm.tokenize(b" the cook is chosen by the crew", add_bos=False)


def shares(a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]) -> float:
    """Mean Jaccard index of kept sets, [n_layer, n_head_kv, n_kept] each."""
    pairs = zip(a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]), strict=True)
    return float(np.mean([len(np.intersect1d(x, y)) / len(np.union1d(x, y)) for x, y in pairs]))


def test_views_are_what_the_engine_scored(vaulted: Llama, prompt: list[int]) -> None:
    stats = vaulted.prefill(prompt)
    views = vaulted.layer_views()

    kept = vaulted.kept_positions()
    assert len(views) == len(kept)
    for view, ids in zip(views, kept, strict=True):
        assert view.q.shape[1] == 40
        scores = reference.scores(view.q[:, -WINDOW:], view.k, view.scale)
        expected = reference.select(scores, ids.shape[1])
        assert shares(expected[None], ids[None]) > 0.99
    n_float = sum(view.q.size for view in views)
    assert stats.bytes_vault == stats.bytes_kv_full // 512 * 300 + 4 * n_float


def test_the_engines_own_rows_give_its_logits(
    vaulted: Llama, llm: Llama, prompt: list[int], answer: list[int]
) -> None:
    llm.prefill(prompt)
    expected, kept = llm.logits_for(answer), llm.kept_positions()
    vaulted.prefill(prompt)
    m = len(prompt) - WINDOW
    others = np.arange(m - kept.shape[2], m, dtype=np.int32)
    vaulted.select_rows([np.tile(others, (kept.shape[1], 1))] * len(kept))
    assert not np.array_equal(vaulted.logits_for(answer), expected)

    vaulted.select_rows(list(kept))

    np.testing.assert_array_equal(vaulted.kept_positions(), kept)
    np.testing.assert_array_equal(vaulted.logits_for(answer), expected)


def test_all_rows_give_the_full_caches_logits(
    roomy: Llama, plain: Llama, prompt: list[int], answer: list[int], shape: ModelShape
) -> None:
    plain.reset()
    plain.eval(prompt)
    expected = plain.logits_for(answer)

    roomy.prefill(prompt)
    np.testing.assert_array_equal(roomy.logits_for(answer), expected)
    few = np.arange(8, dtype=np.int32)
    roomy.select_rows([np.tile(few, (shape.n_head_kv[0], 1))] * shape.n_layer)
    roomy.select_rows(None)
    np.testing.assert_array_equal(roomy.logits_for(answer), expected)


@pytest.mark.parametrize("kv_type", [8, 2], ids=["q8_0", "q4_0"])
def test_rows_of_quantized_caches_come_back_as_they_are(
    make: Callable[..., Llama], prompt: list[int], answer: list[int], kv_type: int
) -> None:
    llm = make(VAULT, type_k=kv_type, type_v=kv_type)
    llm.prefill(prompt)
    expected, kept = llm.logits_for(answer), llm.kept_positions()

    llm.select_rows(list(kept[:, :, :8]))
    llm.select_rows(list(kept))

    np.testing.assert_array_equal(llm.logits_for(answer), expected)


def test_a_second_question_computes_only_itself(
    vaulted: Llama, without: Llama, prompt: list[int], answer: list[int]
) -> None:
    # 256 tokens in common: two ubatches, so that both prefills compute in the same chunks
    other = [*prompt[:256], prompt[256] + 1, *answer * 10]
    without.prefill(other)
    expected, kept = without.logits_for(answer), without.kept_positions()
    vaulted.prefill(prompt)

    stats = vaulted.prefill(other)

    assert stats.n_cached == 256
    np.testing.assert_array_equal(vaulted.kept_positions(), kept)
    np.testing.assert_array_equal(vaulted.logits_for(answer), expected)


def test_other_chunks_choose_nearly_the_same_rows(
    vaulted: Llama, without: Llama, prompt: list[int]
) -> None:
    other = [*prompt[:200], *prompt[40:120]]
    without.prefill(other)
    vaulted.prefill(prompt)

    assert vaulted.prefill(other).n_cached == 200

    assert shares(vaulted.kept_positions(), without.kept_positions()) > 0.97


def test_the_last_tokens_are_computed_even_if_all_is_in_the_vault(
    vaulted: Llama, prompt: list[int]
) -> None:
    vaulted.prefill(prompt)
    kept = vaulted.kept_positions()
    assert vaulted.prefill(prompt).n_cached == len(prompt) - 64
    assert shares(vaulted.kept_positions(), kept) > 0.97


def test_each_turn_of_a_conversation_chooses_anew(
    vaulted: Llama, prompt: list[int], answer: list[int]
) -> None:
    vaulted.reset()
    vaulted.eval(prompt)
    first = vaulted.kept_positions()
    vaulted.eval([answer[0]])  # a token that was generated
    assert vaulted.n_prompt == len(prompt)

    vaulted.eval(answer)

    assert vaulted.last_prefill is not None
    n = len(prompt) + 1 + len(answer)
    assert vaulted.n_tokens == vaulted.last_prefill.n_prompt == n
    assert vaulted.last_prefill.n_cached == n - 64
    assert not np.array_equal(first, vaulted.kept_positions())


def test_an_aborted_prefill_leaves_the_common_prefix(vaulted: Llama, prompt: list[int]) -> None:
    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    vaulted.prefill(prompt)
    other = [*prompt[:250], *prompt[:40]]
    with pytest.raises(KeyboardInterrupt):
        vaulted.prefill(other, progress=stop)

    with pytest.raises(ConfigError, match="prefill them again"):
        vaulted.select_rows(None)
    assert vaulted.prefill(other).n_cached == 290 - 64


def test_what_is_refused(vaulted: Llama, llm: Llama, prompt: list[int], shape: ModelShape) -> None:
    with pytest.raises(ConfigError, match="no vault"):
        vaulted.select_rows(None)
    with pytest.raises(ConfigError, match='vault="ram"'):
        llm.layer_views()
    vaulted.prefill(prompt)
    with pytest.raises(NoRoomError, match="budget"):
        vaulted.select_rows(None)
    m = len(prompt) - WINDOW
    for row in ([0, 1, 1], [2, 1, 3], [0, 1, m], [-1, 1, 2]):
        with pytest.raises(ConfigError, match="must ascend"):
            vaulted.select_rows([np.array([row] * shape.n_head_kv[0], np.int32)] * shape.n_layer)
    with pytest.raises(ConfigError, match=f"{shape.n_layer} cached layers"):
        vaulted.select_rows([np.zeros((shape.n_head_kv[0], 1), np.int32)])
    vaulted.logits_for(prompt[:4])  # after all that the sequence is as it was


def test_the_limit_is_kept(make: Callable[..., Llama], prompt: list[int]) -> None:
    llm = make(replace(VAULT, vault_limit=2**19))
    with pytest.raises(NativeError, match="raise the limit"):
        llm.prefill(prompt)
    with pytest.raises(ConfigError, match="vault_limit"):
        SnapKVConfig(vault_limit=0)


def test_no_memory_for_the_vault(python: Callable[..., object]) -> None:
    code = """
import os
from snapkv_local import Llama, SnapKVConfig, errors
llm = Llama(os.environ["MODEL"], n_ctx=512, verbose=False,
            snapkv=SnapKVConfig(budget=96, window_size=16, decode_cells=64, vault="ram"))
tokens = list(range(1000, 1300))
os.environ["SNAPKV_TEST_FAIL_ALLOC"] = "vault"
try:
    llm.prefill(tokens)
except errors.OutOfMemoryError as e:
    print(e)
del os.environ["SNAPKV_TEST_FAIL_ALLOC"]
print(llm.prefill(tokens).n_kept)
"""
    result = python(code)
    assert "vault" in result.stdout, result
    assert result.stdout.endswith("96\n")


def test_layers_may_keep_different_numbers_of_rows(
    roomy: Llama, prompt: list[int], answer: list[int], shape: ModelShape
) -> None:
    roomy.prefill(prompt)
    m = len(prompt) - WINDOW
    views = roomy.layer_views()
    ids = [reference.select(reference.scores(v.q, v.k, v.scale), 60, n_sink=1) for v in views]
    roomy.select_rows(ids)
    expected = roomy.logits_for(answer)

    # only the last layer gets a row more, one that nothing attends to: all others begin a cell later
    last = views[-1]
    unseen = reference.attention(last.q, last.k, last.scale).sum(axis=1)
    unseen = unseen.reshape(shape.n_head_kv[0], -1, len(prompt))
    extra = [
        np.union1d(row, [min(set(range(m)) - set(row), key=lambda j, h=h: unseen[h, :, j].sum())])
        for h, row in enumerate(ids[-1])
    ]
    roomy.select_rows(None)  # other rows in all cells
    roomy.select_rows([*ids[:-1], np.array(extra, np.int32)])
    assert np.abs(roomy.logits_for(answer) - expected).mean() < 0.01
    with pytest.raises(ConfigError, match="differ in number"):
        roomy.kept_positions()

    # one layer that has lost one row is farther off: the bound above can fail
    roomy.select_rows([np.delete(ids[0], 5, axis=1), *ids[1:]])
    assert np.abs(roomy.logits_for(answer) - expected).mean() > 0.03


def test_saved_states_hold_layers_of_different_rows(
    roomy: Llama, prompt: list[int], answer: list[int], shape: ModelShape
) -> None:
    roomy.prefill(prompt)
    ids = [
        np.tile(np.arange(40 + ic, dtype=np.int32), (shape.n_head_kv[0], 1))
        for ic in range(shape.n_layer)
    ]
    roomy.select_rows(ids)
    state = roomy.save_state()
    expected = roomy.logits_for(answer)

    roomy.prefill(prompt[:200])
    roomy.load_state(state)

    np.testing.assert_array_equal(roomy.logits_for(answer), expected)


@pytest.mark.parametrize("n_question", [20, 40, 60])
def test_a_short_question_chooses_the_rows_of_a_prefill_anew(
    vaulted: Llama, without: Llama, prompt: list[int], answer: list[int], n_question: int
) -> None:
    # 64 queries or more at once, on both sides: fewer take another way through attention
    text = [*prompt, *prompt[40:120]][: 384 - n_question]
    vaulted.prefill(text)
    asked = [*text, *(answer * 8)[:n_question]]
    without.prefill(asked)
    vaulted.prefill(asked)
    np.testing.assert_array_equal(vaulted.kept_positions(), without.kept_positions())
    np.testing.assert_array_equal(vaulted.logits_for(answer), without.logits_for(answer))
