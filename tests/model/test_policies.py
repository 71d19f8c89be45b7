"""Policies at run time: Python chooses the rows of each layer within the prefill."""

import re
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from refused import refused

from snapkv_local import Llama, SnapKVConfig, policies
from snapkv_local.errors import ConfigError
from snapkv_local.models.gguf_shape import ModelShape
from snapkv_local.policies import PromptView, reference
from snapkv_local.policies.random import Random
from snapkv_local.policies.rows import Ids
from snapkv_local.prompt import vocabulary

WINDOW, BUDGET = 16, 96
N_ROWS = BUDGET - WINDOW
CONFIG = SnapKVConfig(budget=BUDGET, window_size=WINDOW, decode_cells=64)

# what the prompt of 300 tokens has, for those that ask
QUESTION = (270, 290)
PROTECTED = [(5, 12), (280, 300)]

RUNNING = [
    "streaming",
    "random:seed=7",
    "h2o",
    "expected:observation=200",
    "value:kernel_size=7+observation=24",
    "question:kernel_size=21+aggregation=max",
    "windows:observation=8",
    "sentence:of=question:n_sink=2",
]


@pytest.fixture(scope="module")
def chooses(make: Callable[..., Llama]) -> Llama:
    """With a vault, which shows what a policy saw."""
    return make(replace(CONFIG, vault="ram", policy="streaming"))


@pytest.fixture(scope="module")
def engine(make: Callable[..., Llama]) -> Llama:
    """Chooses by itself."""
    return make(replace(CONFIG, vault="ram"))


@pytest.fixture(autouse=True)
def nothing_named(request: pytest.FixtureRequest) -> Any:
    yield
    if "chooses" in request.fixturenames:
        llm = request.getfixturevalue("chooses")
        llm.set_question(None)
        llm.set_protected([])
        llm.clear_vault()
    if "engine" in request.fixturenames:  # what it has in a vault it computes in other chunks
        request.getfixturevalue("engine").clear_vault()


@pytest.fixture(scope="module")
def answer(llm: Llama) -> list[int]:
    return llm.tokenize(b" the cook is chosen by the crew", add_bos=False)


def sentences(llm: Llama, tokens: list[int]) -> tuple[int, ...]:
    """First tokens of sentences, the long way."""
    ends = np.cumsum([len(piece) for piece in vocabulary.pieces(llm, tokens)])
    text = b"".join(vocabulary.pieces(llm, tokens))
    found = {0}
    for match in re.finditer(rb"[.!?](?=\s)|\n(?=[^\n])", text):
        # the first token that begins at the sentence or later
        found.add(int(np.sum(ends < match.end())) + 1)
    return tuple(sorted(found))


@pytest.mark.parametrize("spec", RUNNING)
def test_the_rows_are_those_that_the_policy_chooses(
    chooses: Llama,
    engine: Llama,
    prompt: list[int],
    answer: list[int],
    spec: str,
) -> None:
    config = replace(CONFIG, vault="ram", policy=spec)
    chooses.set_snapkv(config)
    chooses.set_question(QUESTION)
    chooses.set_protected(PROTECTED)
    stats = chooses.prefill(prompt)
    kept, coverage = chooses.kept_positions(), chooses.coverage()
    assert (stats.n_prompt, stats.n_kept) == (len(prompt), BUDGET)

    policy = policies.parse(spec)
    view = PromptView(
        len(prompt),
        WINDOW,
        protected=((5, 12), (280, 300)),
        question=QUESTION,
        sentences=sentences(chooses, prompt),
    )
    layers = chooses.layer_views()
    expected = [policy.select(layer, view, N_ROWS) for layer in layers]
    np.testing.assert_array_equal(kept, expected)
    assert all(set(range(5, 12)) <= set(head) for layer in kept for head in layer)

    # the figure is of these rows, and of the attention of those that the engine counts
    n_voters = config.n_voters()
    for layer, ids, found in zip(layers, kept, coverage, strict=True):
        by_definition = reference.coverage(
            layer.q[:, -n_voters:], layer.k, layer.scale, ids, window_size=WINDOW
        )
        np.testing.assert_allclose(found, by_definition, rtol=1e-4)
    assert stats.coverage == pytest.approx(coverage.mean(), rel=1e-5)

    # and the cache has them
    logits = chooses.logits_for(answer)
    own = engine.prefill(prompt).coverage
    assert own != pytest.approx(stats.coverage, rel=1e-5)
    assert not np.array_equal(engine.kept_positions(), kept)
    engine.select_rows(list(kept))
    np.testing.assert_allclose(engine.logits_for(answer), logits, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "policy"),
    [
        (
            {"kernel_size": 7, "pooling": "avg", "aggregation": "sum", "self_weight": 0},
            "question:kernel_size=7",
        ),
        ({}, "question:kernel_size=21+self_weight=0.25+pooling=nosink+aggregation=max"),
    ],
)
def test_snapkv_in_python_keeps_what_the_engine_keeps(
    chooses: Llama, engine: Llama, prompt: list[int], settings: dict[str, Any], policy: str
) -> None:
    """The question is put where the engine's voters are, and is then the same policy."""
    engine.set_snapkv(replace(CONFIG, vault="ram", **settings))
    coverage = engine.prefill(prompt).coverage
    chooses.set_snapkv(replace(CONFIG, vault="ram", policy=policy))
    chooses.set_question((len(prompt) - WINDOW, len(prompt)))
    assert chooses.prefill(prompt).coverage == pytest.approx(coverage, rel=1e-4)
    pairs = zip(
        engine.kept_positions().reshape(-1, N_ROWS),
        chooses.kept_positions().reshape(-1, N_ROWS),
        strict=True,
    )
    # but for rounding
    assert np.mean([len(np.intersect1d(a, b)) for a, b in pairs]) > 0.998 * N_ROWS


def test_stock_ops_and_several_layers_at_a_time(
    make: Callable[..., Llama], prompt: list[int], shape: ModelShape
) -> None:
    kept = []
    for settings in ({"ops": "ggml"}, {"layer_group": 4}):
        llm = make(replace(CONFIG, policy="random", **settings))
        llm.prefill(prompt)
        kept.append(llm.kept_positions())
    np.testing.assert_array_equal(*kept)
    # each layer has its own
    assert len(np.unique(kept[0][:, 0], axis=0)) == shape.n_layer


def test_queries_are_saved_as_far_back_as_the_question(
    make: Callable[..., Llama], prompt: list[int]
) -> None:
    """The engine saves those of the window only, unless it is asked; chunks are of 128 tokens."""
    llm = make(replace(CONFIG, policy="question"))
    kept = []
    for question in [(295, 300), (100, 140)]:
        llm.set_question(question)
        llm.prefill(prompt)
        kept.append(llm.kept_positions())
    # a question looks at itself and at what is before it; votes are pooled over 5 positions
    assert (kept[1] < 142).all()
    assert (kept[0][:, :, -1] > 140).all()


@pytest.mark.parametrize("spec", ["h2o", "value:observation=80"])
def test_a_question_to_the_vault_chooses_as_a_prefill_anew(
    make: Callable[..., Llama], prompt: list[int], answer: list[int], spec: str
) -> None:
    """The policy looks at more queries than the last 64 tokens, which are all that is computed."""
    config = replace(CONFIG, policy=spec)
    anew, llm = make(config), make(replace(config, vault="ram"))
    text = [*prompt, *prompt[40:120]][:364]
    llm.prefill(text)
    for words in (answer * 8, prompt[200:]):
        asked = [*text, *words[:20]]
        anew.prefill(asked)
        assert llm.prefill(asked).n_cached == len(asked) - 64
        np.testing.assert_array_equal(llm.kept_positions(), anew.kept_positions())
        np.testing.assert_allclose(llm.coverage(), anew.coverage(), rtol=1e-6)


def test_a_turn_has_the_queries_of_its_own_tokens(
    make: Callable[..., Llama], prompt: list[int]
) -> None:
    """The rows before it are there without theirs."""
    llm = make(CONFIG, keep_queries=40)
    llm.prefill(prompt)
    seen: list[int] = []
    llm._ctx.tap = lambda data: seen.append(data.n_queries)
    llm._ctx.extend(len(prompt), np.array(prompt[:20], np.int32))
    assert set(seen) == {20}


def test_cells_that_run_out_in_an_answer(make: Callable[..., Llama], prompt: list[int]) -> None:
    """The policy then chooses from all of the conversation."""
    llm = make(replace(CONFIG, policy="streaming"))
    tokens = [token for _, token in zip(range(100), llm.generate(prompt, temp=0.0), strict=False)]
    assert len(tokens) == 100
    assert [stats.n_kept for stats in llm.evictions] == [BUDGET]
    assert llm.last_prefill.n_prompt == len(prompt)
    n = llm.evictions[0].n_prompt
    assert len(prompt) + 60 <= n < len(prompt) + 100
    rows = [*range(4), *range(n - BUDGET + 4, n - WINDOW)]
    np.testing.assert_array_equal(llm.kept_positions()[3, 1], rows)


def test_a_turn_that_finds_no_cells(make: Callable[..., Llama], prompt: list[int]) -> None:
    llm = make(replace(CONFIG, policy="streaming"))
    llm.prefill(prompt)
    llm.eval(prompt[:70])
    n = len(prompt) + 70
    assert (llm.n_tokens, llm.last_prefill.n_prompt) == (n, n)
    assert llm.kept_positions()[0, 0].tolist() == [*range(4), *range(n - BUDGET + 4, n - WINDOW)]


class Broken(Random):
    """A policy that fails at a layer."""

    name: ClassVar[str] = "broken"
    layer: ClassVar[int] = 0
    answer: ClassVar[Any] = None

    def select(self, layer: Any, prompt: PromptView, n_rows: int) -> Ids:
        ids = super().select(layer, prompt, n_rows)
        if layer.index != self.layer:
            return ids
        if callable(self.answer):
            return self.answer(ids)
        raise ZeroDivisionError(f"in layer {layer.index}")


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> type[Broken]:
    monkeypatch.setitem(policies.POLICIES, "broken", Broken)
    monkeypatch.setattr(Broken, "answer", None)
    return Broken


@pytest.mark.parametrize("layer", [0, 2, 5])
def test_what_a_policy_raises_ends_the_prefill(
    make: Callable[..., Llama],
    prompt: list[int],
    broken: type[Broken],
    monkeypatch: pytest.MonkeyPatch,
    shape: ModelShape,
    layer: int,
) -> None:
    monkeypatch.setattr(broken, "layer", layer)
    llm = make(replace(CONFIG, policy="broken"))
    seen: list[float] = []
    with pytest.raises(ZeroDivisionError, match=f"in layer {layer}"):
        llm.prefill(prompt, lambda done, total: seen.append(done / total))
    assert (llm.n_tokens, llm.last_prefill) == (0, None)
    assert llm.bytes_of_sequence() == make(CONFIG).bytes_of_sequence()
    assert max(seen) == pytest.approx((layer + 1) / shape.n_layer)

    llm.set_snapkv(replace(CONFIG, policy="random"))
    assert llm.prefill(prompt).n_kept == BUDGET


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda ids: ids[:, :-1], ValueError),
        (lambda ids: ids[:, ::-1], Exception),
        (lambda ids: ids + 300, Exception),
        (lambda ids: np.zeros_like(ids), Exception),
    ],
)
def test_positions_that_cannot_be(
    make: Callable[..., Llama],
    prompt: list[int],
    broken: type[Broken],
    monkeypatch: pytest.MonkeyPatch,
    answer: Any,
    error: type[Exception],
) -> None:
    monkeypatch.setattr(broken, "layer", 5)
    monkeypatch.setattr(broken, "answer", staticmethod(answer))
    llm = make(replace(CONFIG, policy="broken"))
    with pytest.raises(error):
        llm.prefill(prompt)
    assert llm.n_tokens == 0


def test_ctrl_c_while_a_policy_chooses(
    make: Callable[..., Llama],
    prompt: list[int],
    broken: type[Broken],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(ids: Ids) -> Ids:
        signal.raise_signal(signal.SIGINT)
        return ids

    monkeypatch.setattr(broken, "layer", 3)
    monkeypatch.setattr(broken, "answer", staticmethod(interrupted))
    llm = make(replace(CONFIG, policy="broken"))
    seen: list[float] = []
    with pytest.raises(KeyboardInterrupt):
        llm.prefill(prompt, lambda done, total: seen.append(done / total))
    assert max(seen) < 0.8
    assert (llm.n_tokens, llm.last_prefill) == (0, None)
    llm.set_snapkv(replace(CONFIG, policy="random"))
    assert llm.prefill(prompt).n_kept == BUDGET


def test_a_prefill_on_another_thread(make: Callable[..., Llama], prompt: list[int]) -> None:
    llm = make(replace(CONFIG, policy="random"))
    thread = threading.Thread(target=llm.prefill, args=(prompt,))
    thread.start()
    thread.join()
    kept = llm.kept_positions()
    llm.prefill(prompt)
    np.testing.assert_array_equal(llm.kept_positions(), kept)


def test_what_does_not_fit(make: Callable[..., Llama], prompt: list[int]) -> None:
    llm = make(replace(CONFIG, policy="question"))
    with pytest.raises(ConfigError, match="the prompt has no question; ask in a chat's last user"):
        llm.prefill(prompt)
    # nothing is evicted, so nobody is asked
    assert llm.prefill(prompt[:BUDGET]).n_kept == BUDGET
    llm.set_question((0, 200))
    with pytest.raises(ConfigError, match="the question of 200 tokens: is most of the prompt"):
        llm.prefill(prompt)
    llm.set_question((290, 310))
    with pytest.raises(ConfigError, match="is not a span of the prompt of 300 tokens"):
        llm.prefill(prompt)
    llm.set_question(QUESTION)
    llm.set_protected([(0, 81)])
    with pytest.raises(ConfigError, match=r"does not hold 81 protected ones, .*raise it to 97"):
        llm.prefill(prompt)
    llm.set_protected([(0, 80)])
    llm.prefill(prompt)
    assert (llm.kept_positions() == np.arange(80)).all()
    with pytest.raises(ConfigError, match="the engine's scores are those of snapkv"):
        make(replace(CONFIG, policy="question"), keep_scores=True)


def test_a_prompt_said_once_more_shows_which_rows_it_takes(
    make: Callable[..., Llama], prompt: list[int]
) -> None:
    """Afterwards the context holds the prompt; the views are those of one that is twice as long."""
    config = replace(CONFIG, budget=600, decode_cells=16, vault="ram")
    llm = make(config, keep_queries=300, n_ctx=640)
    llm.prefill(prompt)
    logits = llm.logits_for(prompt[:2], 1)
    views = llm.repeated_views(begin=20)
    assert llm.n_tokens == llm.n_prompt == len(prompt)
    # its last tokens were computed in other chunks
    np.testing.assert_allclose(llm.logits_for(prompt[:2], 1), logits, atol=0.5)
    llm.prefill([*prompt, *prompt[20:]])
    for view, twice in zip(views, llm.layer_views(), strict=True):
        assert view.again is not None
        np.testing.assert_allclose(view.again.k, twice.k[:, len(prompt) :], atol=0.3)
        assert view.again.q.shape[1] == view.again.k.shape[1] == 280
    view = PromptView(len(prompt), WINDOW)
    llm.prefill(prompt)
    llm.select_rows([policies.parse("replay").select(layer, view, N_ROWS) for layer in views])
    assert llm.kept_positions().shape[-1] == N_ROWS


def test_a_policy_that_repeats_the_prompt_is_none_for_a_prefill(
    make: Callable[..., Llama], prompt: list[int]
) -> None:
    llm = make(replace(CONFIG, policy="replay"))
    with refused(ConfigError, "policy replay"):
        llm.prefill(prompt)


def test_what_a_repetition_needs(make: Callable[..., Llama], prompt: list[int]) -> None:
    llm = make(replace(CONFIG, vault="ram"), keep_queries=40)
    llm.prefill(prompt)
    with refused(ConfigError, "a prompt of which 300 tokens are repeated"):
        llm.repeated_views()


def test_rows_for_questions_that_come_later(
    make: Callable[..., Llama], prompt: list[int], tmp_path: Path
) -> None:
    """A vault is there while they are chosen; afterwards a small cache goes on from them."""
    reader = make(replace(CONFIG, budget=600, vault="ram"), keep_queries=300, n_ctx=700)
    reader.prefill(prompt)
    reader.keep_for_later(BUDGET)
    assert reader.kept_positions().shape[-1] == N_ROWS
    with refused(ConfigError, "the vault"):
        reader.layer_views()
    reader.save_session(tmp_path / "document")
    logits = reader.logits_for(prompt[:8], 1)

    llm = make(CONFIG, n_ctx=700)
    llm.load_session(tmp_path / "document")
    np.testing.assert_array_equal(llm.kept_positions(), reader.kept_positions())
    np.testing.assert_allclose(llm.logits_for(prompt[:8], 1), logits, atol=1e-3)
    list(zip(range(2), llm.generate([*prompt, *prompt[:8]], temp=0.0), strict=False))
    assert llm.n_cached >= len(prompt)


@pytest.mark.parametrize(
    ("budget", "subject"), [(WINDOW - 1, "n_rows=-1"), (WINDOW + 3, "n_rows=3")]
)
def test_budgets_that_keep_nothing_for_later(
    engine: Llama, prompt: list[int], budget: int, subject: str
) -> None:
    engine.prefill(prompt)
    with refused(ConfigError, subject):
        engine.keep_for_later(budget, "streaming")
