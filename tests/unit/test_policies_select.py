"""Which rows each policy keeps, against plain float64."""

import dataclasses
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest

from snapkv_local import policies
from snapkv_local.errors import ConfigError
from snapkv_local.policies import LayerView, PromptView, reference, scoring
from snapkv_local.policies.expected import Expected, expected_logits
from snapkv_local.policies.replay import Replay
from snapkv_local.policies.snapkv_paper import SnapKVPaper
from snapkv_local.policies.view import Again
from snapkv_local.policies.voting import Voting

WINDOW = 9
QUESTION = (101, 115)
N_AGAIN = 37


@dataclass(frozen=True)
class Shape:
    n: int = 131
    n_head_kv: int = 2
    group: int = 3
    d: int = 16
    d_v: int = 11
    softcap: float = 0.0


SHAPES = [
    Shape(),
    Shape(group=1, n_head_kv=3),
    Shape(softcap=2.5),
    Shape(n=WINDOW + 1),
    Shape(n=WINDOW + 2, group=2),
]


def make_layer(shape: Shape = Shape(), n_observed: int | None = None, index: int = 0) -> LayerView:
    """A layer whose heads look at different things; queries of all positions if not told."""
    rng = np.random.default_rng([shape.n, shape.n_head_kv, shape.group, index])

    def random(heads: int, rows: int, size: int) -> np.ndarray:
        return rng.normal(size=(heads, rows, size)).astype(np.float32)

    q = random(shape.n_head_kv * shape.group, shape.n, shape.d)
    k, v = (random(shape.n_head_kv, shape.n, size) for size in (shape.d, shape.d_v))
    v *= rng.lognormal(size=(shape.n_head_kv, shape.n, 1)).astype(np.float32)
    first = 0 if n_observed is None else shape.n - n_observed
    again = Again(random(len(q), N_AGAIN, shape.d), random(len(k), N_AGAIN, shape.d))
    return LayerView(index, 4, q[:, first:], k, v, 0.4, shape.softcap, again)


def prompt_of(shape: Shape, **settings: object) -> PromptView:
    question = QUESTION if shape.n > QUESTION[1] else (2, 5)
    settings = {"question": question, "sentences": tuple(range(3, shape.n, 7)), **settings}
    return PromptView(shape.n, WINDOW, **settings)  # type: ignore[arg-type]


def weights_of(layer: LayerView, begin: int, end: int) -> np.ndarray:
    """Attention of the rows at [begin, end): [n_head, end - begin, n]."""
    first = layer.k.shape[1] - layer.q.shape[1]
    q = layer.q[:, begin - first : end - first]
    return reference.attention(q, layer.k, layer.scale, layer.softcap, end)


def reduced(weights: np.ndarray, m: int, aggregation: str) -> np.ndarray:
    prefix = weights[:, :, :m]
    return prefix.max(axis=1) if aggregation == "max" else prefix.sum(axis=1)


def weighed(votes: np.ndarray, layer: LayerView, policy: Voting) -> np.ndarray:
    score = reference.pool(votes, policy.kernel_size, policy.pooling) + policy.self_weight * votes
    return reference.group_mean(score, len(layer.k))


# by name: (layer, prompt, policy) -> scores of the prefix [n_head_kv, m], in float64


def n_voters(policy, prompt):
    # where the question is not in the window
    words = {"window": prompt.window_size, "question": min(16, prompt.window_size)}
    return words.get(policy.observation, policy.observation)


def snapkv(layer, prompt, policy):
    n, m = prompt.n_prompt, prompt.n_prompt - prompt.window_size
    begin, end = n - min(n_voters(policy, prompt), n), n
    if policy.observation == "question" and prompt.question[1] > m:
        begin, end = max(m, prompt.question[0]), prompt.question[1]
    # rows that neither vote nor are of the prefix are pooled with it, as in the engine
    votes = reduced(weights_of(layer, begin, end), max(m, begin), policy.aggregation)
    return weighed(votes, layer, policy)[:, :m]


def question(layer, prompt, policy):
    m = prompt.n_prompt - prompt.window_size
    n_voted = max(m, prompt.question[0])
    votes = reduced(weights_of(layer, *prompt.question), n_voted, policy.aggregation)
    return weighed(votes, layer, policy)[:, :m]


def windows(layer, prompt, policy):
    n, m = prompt.n_prompt, prompt.n_prompt - prompt.window_size
    w = min(n_voters(policy, prompt), n)
    both = []
    for weights in (weights_of(layer, *prompt.question), weights_of(layer, n - w, n)):
        votes = reduced(weights, m, policy.aggregation)
        both.append(votes / weights.shape[1] if policy.aggregation == "sum" else votes)
    first, second = policy.weight * both[0], (1 - policy.weight) * both[1]
    votes = first + second if policy.aggregation == "sum" else np.maximum(first, second)
    return weighed(votes, layer, policy)


def value(layer, prompt, policy):
    n, m = prompt.n_prompt, prompt.n_prompt - prompt.window_size
    w = min(n_voters(policy, prompt), n)
    weights = weights_of(layer, n - w, n)
    if policy.kind == "norm":
        weights = weights * np.repeat(np.abs(layer.v).sum(axis=2), len(layer.q) // len(layer.k), 0)[
            :, None
        ].astype(np.float64)
    else:
        weights = reference.output_change(weights, layer.v)
    n_voted = max(m, n - w) if policy.kind == "norm" else m
    votes = reduced(weights, n_voted, policy.aggregation)
    return weighed(votes, layer, policy)[:, :m]


def h2o(layer, prompt, policy):
    n, m = prompt.n_prompt, prompt.n_prompt - prompt.window_size
    return reference.group_mean(weights_of(layer, 0, n)[:, :, :m].sum(axis=1), len(layer.k))


ORACLES = {
    "snapkv": snapkv,
    "snapkv-paper": snapkv,
    "question": question,
    "windows": windows,
    "value": value,
    "h2o": h2o,
}
SPECS = [
    "snapkv",
    "snapkv-paper",
    "snapkv-paper:kernel_size=1",
    "snapkv-paper:kernel_size=13+pooling=max+aggregation=max",
    "snapkv-paper:kernel_size=21+self_weight=0.25+pooling=nosink+aggregation=max",
    "snapkv-paper:kernel_size=1+self_weight=0.5+pooling=nosink",
    "snapkv-paper:kernel_size=3+self_weight=0.25+pooling=nosink+observation=5",
    "snapkv-paper:self_weight=2+kernel_size=3+pooling=max",
    "snapkv-paper:kernel_size=3+observation=5",
    "snapkv-paper:kernel_size=3+observation=4+aggregation=max",
    "question:kernel_size=3",
    "question:kernel_size=1+aggregation=max",
    "question:kernel_size=5+self_weight=0.25+pooling=nosink+aggregation=max",
    "windows",
    "windows:self_weight=0.25+pooling=nosink",
    "windows:aggregation=max+weight=0.8+observation=4",
    "value",
    "value:kind=caote",
    "value:kind=caote+aggregation=max+kernel_size=1",
    "value:aggregation=max+pooling=max+observation=3",
    "value:kernel_size=5+self_weight=0.25+pooling=nosink+aggregation=max+observation=3",
    "h2o:recent=0.0",
]


@pytest.mark.parametrize(("spec", "shape"), list(product(SPECS, SHAPES)))
def test_keeps_what_float64_keeps(spec, shape):
    policy, layer, prompt = policies.parse(spec), make_layer(shape), prompt_of(shape)
    expected = ORACLES[policy.name](layer, prompt, policy)
    found = policy.scores(layer, prompt)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-9)
    for n_rows in {0, 1, (shape.n - WINDOW) // 3, shape.n - WINDOW - 1, shape.n - WINDOW}:
        kept = policy.select(layer, prompt, n_rows)
        np.testing.assert_array_equal(kept, reference.select(expected, n_rows))


def test_snapkv_is_the_reference():
    # reference.scores() is what the native engine is tested with
    layer, prompt = make_layer(n_observed=WINDOW), prompt_of(Shape())
    pools, owns = ("avg", "max", "nosink"), (0.0, 0.25)
    for kernel_size, pooling, aggregation, self_weight in product(
        (1, 5), pools, ("sum", "max"), owns
    ):
        expected = reference.scores(
            layer.q,
            layer.k,
            layer.scale,
            kernel_size=kernel_size,
            pooling=pooling,
            aggregation=aggregation,
            self_weight=self_weight,
        )
        policy = SnapKVPaper(
            kernel_size=kernel_size,
            self_weight=self_weight,
            pooling=pooling,
            aggregation=aggregation,
            n_sink=3,
        )
        kept = policy.select(layer, prompt, 40)
        np.testing.assert_array_equal(kept, reference.select(expected, 40, n_sink=3))


@pytest.mark.parametrize("spec", SPECS)
def test_the_data_tell_right_from_wrong(spec, monkeypatch):
    # with a known error the scores are far from those that the test above compares with
    policy, layer, prompt = policies.parse(spec), make_layer(), prompt_of(Shape())
    oracle = ORACLES[policy.name]
    right = oracle(layer, prompt, policy)

    def is_far(scores):
        return (np.abs(scores - right) > 1e-2 * right).sum() > 5

    interleaved = np.arange(6).reshape(3, 2).T.ravel()  # query head h reads KV head h % n_head_kv
    assert is_far(oracle(dataclasses.replace(layer, q=layer.q[interleaved]), prompt, policy))

    attention = reference.attention

    def without_mask(q, k, scale, softcap, end):
        rows = [attention(q[:, i : i + 1], k, scale, softcap) for i in range(q.shape[1])]
        return np.concatenate(rows, axis=1)

    monkeypatch.setattr("snapkv_local.policies.reference.attention", without_mask)
    assert is_far(oracle(layer, prompt, policy))


@pytest.mark.parametrize("spec", SPECS)
def test_blocks_of_any_size_give_the_same(spec, monkeypatch):
    policy, layer = policies.parse(spec), make_layer()
    whole = policy.scores(layer, prompt_of(Shape()))
    monkeypatch.setattr(scoring, "_BLOCK", 1100)  # two or three rows
    np.testing.assert_allclose(policy.scores(layer, prompt_of(Shape())), whole, rtol=1e-5)


@pytest.mark.parametrize("small", [0, 2**28])
@pytest.mark.parametrize("r", [1, 31, 200])
@pytest.mark.parametrize(("n", "d"), [(1, 64), (37, 64), (1000, 80), (129, 5000)])
def test_products_in_pieces_are_whole(n, d, r, small, monkeypatch):
    monkeypatch.setattr(scoring, "_SMALL", small)
    rng = np.random.default_rng(r)
    rows, keys = (rng.normal(size=(size, d)).astype(np.float32) for size in (r, n))
    out = np.full((r, n), np.nan, dtype=np.float32)
    scoring.dot(rows, keys, out)
    np.testing.assert_allclose(out, rows.astype(np.float64) @ keys.T.astype(np.float64), atol=1e-3)


@pytest.mark.parametrize("spec", SPECS)
def test_more_queries_than_needed_change_nothing(spec):
    policy, prompt = policies.parse(spec), prompt_of(Shape())
    needed = make_layer(n_observed=policy.n_observed(prompt))
    np.testing.assert_array_equal(
        policy.select(needed, prompt, 30), policy.select(make_layer(), prompt_of(Shape()), 30)
    )


@pytest.mark.parametrize("spec", [spec for spec in SPECS if "h2o" not in spec])
def test_too_few_queries_are_refused(spec):
    policy, prompt = policies.parse(spec), prompt_of(Shape())
    layer = make_layer(n_observed=policy.n_observed(prompt) - 1)
    with pytest.raises(ConfigError, match="observe the last"):
        policy.select(layer, prompt, 30)


def test_equal_scores_keep_the_lower_position():
    layer = make_layer()
    layer = dataclasses.replace(layer, k=np.zeros_like(layer.k))
    kept = policies.parse("snapkv-paper:kernel_size=1").select(layer, prompt_of(Shape()), 5)
    assert kept.tolist() == [[0, 1, 2, 3, 4]] * 2
    # the average counts zeros beyond the ends, so that the borders come last; nosink also in the first
    # token's place
    for spec, first in (
        ("snapkv-paper:kernel_size=5", 2),
        ("snapkv-paper:kernel_size=5+self_weight=0.25+pooling=nosink", 3),
    ):
        kept = policies.parse(spec).select(layer, prompt_of(Shape()), 5)
        assert kept.tolist() == [list(range(first, first + 5))] * 2


@pytest.mark.parametrize("kind", ["avg", "max", "nosink"])
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 21, 127])
def test_pooled_votes_are_those_of_a_loop(kernel_size, kind):
    votes = np.random.default_rng(kernel_size).exponential(size=(3, 50)).astype(np.float32)
    votes[1] = np.round(votes[1])  # ties
    votes[2, 7:] = 0
    expected, half = np.empty(votes.shape), kernel_size // 2
    first = int(kind == "nosink" and kernel_size > 1)
    for row, out in zip(votes.astype(np.float64).tolist(), expected, strict=True):
        for j in range(50):
            around = [row[i] if first <= i < 50 else 0.0 for i in range(j - half, j + half + 1)]
            out[j] = max(around) if kind == "max" else sum(around) / kernel_size
    before = votes.copy()
    np.testing.assert_allclose(scoring.pool(votes, kernel_size, kind), expected, rtol=1e-5)
    np.testing.assert_array_equal(votes, before)
    with_own = scoring.weighed(votes, kernel_size, kind, 0.25)
    np.testing.assert_allclose(with_own, expected + 0.25 * votes, rtol=1e-5)
    assert with_own.dtype == np.float32
    np.testing.assert_array_equal(votes, before)


def test_the_first_token_lifts_no_neighbour_and_another_peak_does():
    votes = np.zeros((1, 30), dtype=np.float32)
    votes[0, 0] = 1
    assert not scoring.pool(votes, 7, "nosink").any()
    scores = scoring.weighed(votes, 7, "nosink", 0.25)
    assert np.flatnonzero(scores).tolist() == [0] and scores[0, 0] == np.float32(0.25)
    votes[0, 20] = 0.5
    assert np.flatnonzero(scoring.pool(votes, 7, "nosink")).tolist() == list(range(17, 24))


@pytest.mark.parametrize("kernel_size", [3, 21])
def test_what_is_beside_a_first_token_is_as_exact_as_without_it(kernel_size):
    # 1 / 2**30 is lost in a float32 sum with a vote of 1
    small = np.random.default_rng(kernel_size).uniform(1, 2, size=50).astype(np.float32) / 2**30
    votes = small.copy()
    votes[0], small[0] = 1, 0
    rest = reference.pool(small.astype(np.float64), kernel_size, "avg")
    np.testing.assert_allclose(scoring.pool(votes, kernel_size, "nosink"), rest, rtol=1e-5)


def test_scores_that_are_no_numbers_rank_last():
    scores = np.array([[1.0, np.nan, np.inf, 2.0, -np.inf]], dtype=np.float32)
    for n_rows, kept in ((2, [2, 3]), (3, [0, 2, 3]), (4, [0, 1, 2, 3])):
        assert policies.rows.best(scores, n_rows).tolist() == [kept]
    assert policies.rows.best(scores, 2, [4]).tolist() == [[2, 4]]


def test_a_row_with_all_the_attention_moves_the_output_by_itself():
    # 1 - A is 0 in float32; what would be left is the mean of the others
    n = 20
    k = np.zeros((1, n, 4), dtype=np.float32)
    k[0, 3, 0] = 60
    q = np.zeros((1, 2, 4), dtype=np.float32)
    q[..., 0] = 1
    v = np.random.default_rng(0).normal(size=(1, n, 3)).astype(np.float32)
    layer = LayerView(0, 1, q, k, v, 1.0, 0.0)
    policy = policies.parse("value:kind=caote+kernel_size=1")
    scores = policy.scores(layer, PromptView(n, 2))
    expected = reference.output_change(reference.attention(q, k, 1.0), v).sum(axis=1)[:, : n - 2]
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-9)
    assert scores.argmax() == 3


# policies that look at nothing


def test_streaming_keeps_the_first_and_the_last():
    layer, prompt = make_layer(n_observed=1), PromptView(131, WINDOW)
    kept = policies.parse("streaming").select(layer, prompt, 7)
    assert kept.tolist() == [[0, 1, 2, 3, 119, 120, 121]] * 2
    kept = policies.parse("streaming:n_sink=0").select(layer, prompt, 2)
    assert kept.tolist() == [[120, 121]] * 2


def test_random_is_the_same_for_the_same_seed_layer_and_head_only():
    def kept(spec="random", index=0, n=131):
        layer = make_layer(Shape(n=n), n_observed=1, index=index)
        return policies.parse(spec).select(layer, PromptView(n, WINDOW), 30).tolist()

    assert kept() == kept()
    others = [kept("random:seed=1"), kept(index=1), kept(n=132)]
    drawn = [head for found in (kept(), *others) for head in found]
    assert len({tuple(head) for head in drawn}) == 8


def test_random_draws_from_all_of_the_prefix():
    layer = make_layer(Shape(n=1009, n_head_kv=8), n_observed=1)
    kept = policies.parse("random").select(layer, PromptView(1009, WINDOW), 250)
    assert kept.min() < 20
    assert kept.max() > 980
    assert 450 < kept.mean() < 550


def test_a_larger_random_budget_keeps_what_a_smaller_one_does():
    layer, prompt = make_layer(n_observed=1), PromptView(131, WINDOW)
    small, large = (policies.parse("random").select(layer, prompt, n) for n in (20, 50))
    assert all(set(a) <= set(b) for a, b in zip(small.tolist(), large.tolist(), strict=True))


# h2o


def test_h2o_keeps_half_for_recent_rows_the_window_included():
    layer, prompt = make_layer(), prompt_of(Shape())
    n_rows = 41  # of 50 rows 25 are recent, and 9 of these the window
    kept = policies.parse("h2o").select(layer, prompt, n_rows)
    assert (kept[:, -16:] == np.arange(106, 122)).all()
    heavy = h2o(layer, prompt, None)[:, :106]
    np.testing.assert_array_equal(kept[:, :-16], reference.select(heavy, n_rows - 16))


# expected


@pytest.mark.parametrize("shape", SHAPES)
def test_expected_attention_is_that_of_gaussian_queries(shape):
    # a share by the moments of the last queries in float64; of drawn ones, below
    layer, prompt = make_layer(shape), prompt_of(shape)
    m, group = shape.n - WINDOW, shape.group
    n_sink = 4 if shape.n > 20 else 0
    policy = Expected(n_sink=n_sink, observation=40, epsilon=0.01)
    q = layer.q[:, -40:].astype(np.float64)
    share = np.empty((len(q), m))
    for head, rows in enumerate(q):
        k = layer.k[head // group, :m].astype(np.float64)
        spread = np.cov(rows.T, bias=True).reshape(shape.d, shape.d)
        logits = 0.4 * k @ rows.mean(axis=0) + 0.08 * np.einsum("nd,de,ne->n", k, spread, k)
        if shape.softcap:
            logits = shape.softcap * np.tanh(logits / shape.softcap)
        # sinks stay anyway, and take nothing from the others
        weights = np.where(np.arange(m) < n_sink, 0, np.exp(logits))
        share[head] = weights / weights.sum()
    right = (reference.group_mean(share, len(layer.k)) + 0.01) * np.linalg.norm(
        layer.v[:, :m].astype(np.float64), axis=2
    )
    found = policy.scores(layer, prompt)
    np.testing.assert_allclose(found, right, rtol=2e-5)
    kept = policy.select(layer, prompt, n_sink + 1)
    np.testing.assert_array_equal(kept, reference.select(right, n_sink + 1, n_sink=n_sink))


def test_the_closed_form_is_the_mean_over_many_queries():
    rng = np.random.default_rng(0)
    mean, mix = rng.normal(size=4), rng.normal(size=(4, 4)) / 3
    drawn = (mean + rng.normal(size=(400_000, 4)) @ mix.T).astype(np.float32)
    keys = rng.normal(size=(5, 4)).astype(np.float32)
    sampled = np.log(np.exp(0.5 * drawn @ keys.T).mean(axis=0))
    np.testing.assert_allclose(expected_logits(drawn, keys, 0.5), sampled, atol=0.02)


# replay


def most(layer, prompt):
    """The largest attention of any repeated row, in float64: [n_head_kv, m]."""
    n, m = prompt.n_prompt, prompt.n_prompt - WINDOW
    keys = np.concatenate([layer.k, layer.again.k], axis=1)
    weights = reference.attention(
        layer.again.q, keys, layer.scale, layer.softcap, n + layer.again.k.shape[1]
    )
    return weights[:, :, :m].max(axis=1).reshape(len(layer.k), -1, m).max(axis=1)


@pytest.mark.parametrize("shape", SHAPES)
def test_replay_keeps_what_any_repeated_row_attends_to_most(shape):
    layer, prompt = make_layer(shape), prompt_of(shape)
    right = most(layer, prompt)
    policy = Replay(n_sink=0)
    np.testing.assert_allclose(policy.scores(layer, prompt), right, rtol=2e-5)
    n_rows = (shape.n - WINDOW) // 3
    np.testing.assert_array_equal(
        policy.select(layer, prompt, n_rows), reference.select(right, n_rows)
    )


@pytest.mark.parametrize("spec", ["replay", "level:of=replay", "sentence:of=replay"])
def test_who_repeats_the_prompt_cannot_choose_without(spec):
    policy = policies.parse(spec)
    assert policy.repeats()
    layer = dataclasses.replace(make_layer(), again=None)
    with pytest.raises(ConfigError, match="needs the prompt once more"):
        policy.select(layer, prompt_of(Shape()), 30)


def test_one_bar_for_all_layers():
    layers = [make_layer(index=i) for i in range(4)]
    # the last layer looks at nothing in particular
    layers[3] = dataclasses.replace(
        layers[3], again=Again(0 * layers[3].again.q, layers[3].again.k)
    )
    prompt, policy = prompt_of(Shape()), policies.parse("level:of=replay:n_sink=0")
    rows = policy.rows(40, layers, prompt)
    assert rows[3] == 4  # a tenth of the even budget
    assert 150 <= sum(rows) <= 160
    scores = [policy.of.scores(layer, prompt) for layer in layers[:3]]
    bars = np.concatenate(scores, axis=None)
    # the mean of what the two heads have above one bar
    counted = [[-(-np.count_nonzero(score > bar) // 2) for score in scores] for bar in bars]
    assert rows[:3] in counted


# sentences


def whole_chunks(scores, starts, m, by, n_rows):
    """The best chunks, one after the other, and of the last one the best rows."""
    chunks = [list(range(a, b)) for a, b in zip(starts, [*starts[1:], m], strict=True)]
    worth = [getattr(np, by)(scores[chunk]) for chunk in chunks]
    kept: list[int] = []
    for i in sorted(range(len(chunks)), key=lambda i: (-worth[i], i)):
        best = sorted(chunks[i], key=lambda j: (-scores[j], j))
        kept += best[: n_rows - len(kept)]
    return sorted(kept)


@pytest.mark.parametrize(
    ("by", "heads", "sentences"),
    list(product(("mean", "max"), ("each", "all"), (None, (0, 5, 6, 30, 77, 125), (11, 60)))),
)
def test_sentences_stay_whole(by, heads, sentences):
    layer, prompt = make_layer(), prompt_of(Shape(), sentences=sentences)
    m = prompt.n_prompt - WINDOW
    scores = snapkv(layer, prompt, SnapKVPaper(kernel_size=3))
    if heads == "all":
        scores = np.repeat(scores.mean(axis=0)[None], 2, axis=0)
    starts = {None: list(range(0, m, 10)), (11, 60): [0, 11, 60]}.get(sentences, [0, 5, 6, 30, 77])
    policy = policies.parse(
        f"sentence:block=10+by={by}+heads={heads}+of=snapkv-paper:kernel_size=3"
    )
    for n_rows in (1, 13, 60, m):
        kept = policy.select(layer, prompt, n_rows)
        expected = [whole_chunks(head, starts, m, by, n_rows) for head in scores]
        np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize("of", ["snapkv-paper:kernel_size=3", "value:kernel_size=1"])
def test_joint_heads_keep_the_rows_of_their_mean(of):
    layer, prompt = make_layer(), prompt_of(Shape())
    inner = policies.parse(of)
    mean = inner.scores(layer, prompt).mean(axis=0)
    kept = policies.parse(f"joint:of={of}").select(layer, prompt, 20)
    np.testing.assert_array_equal(kept, [np.sort(np.argsort(-mean, kind="stable")[:20])] * 2)
    assert not np.array_equal(inner.select(layer, prompt, 20), kept)


# protection


ALL = [
    *(*SPECS, "h2o", "streaming", "random", "pyramid", "adaptive", "sentence", "joint"),
    *("expected:n_sink=0", "replay:n_sink=0", "level"),
]
SINKS = [
    *(
        f"{name}:n_sink=3"
        for name in ("snapkv", "snapkv-paper", "question", "windows", "value", "h2o", "random")
    ),
    "streaming:n_sink=3",
    "sentence:n_sink=3",
    "sentence:of=snapkv-paper:n_sink=3",
    "expected:n_sink=3",
    "replay:n_sink=3",
    "level:of=replay:n_sink=3",
    "joint:n_sink=3",
    "joint:of=value:n_sink=3",
    "pyramid:of=snapkv-paper:n_sink=3",
    "adaptive:of=value:n_sink=3",
]


@pytest.mark.parametrize("spec", SINKS)
def test_sinks_and_protected_spans_always_stay(spec):
    policy, layer = policies.parse(spec), make_layer()
    # a span may reach into the window, whose rows stay anyway
    prompt = prompt_of(Shape(), protected=((20, 24), (23, 25), (120, 131), (50, 50)))
    stays = [0, 1, 2, 20, 21, 22, 23, 24, 120, 121]
    assert policy.always(prompt).tolist() == stays
    for n_rows in (10, 11, 60):
        kept = policy.select(layer, prompt, n_rows)
        assert all(set(stays) <= set(head) for head in kept.tolist())
    assert policy.select(layer, prompt, 10).tolist() == [stays] * 2
    with pytest.raises(ConfigError, match="n_rows=9: does not hold 10 protected rows"):
        policy.select(layer, prompt, 9)
    with pytest.raises(ConfigError, match="raise the budget to 19 or more"):
        policy.select(layer, prompt, 9)


@pytest.mark.parametrize("spec", ALL)
def test_protection_changes_nothing_else(spec):
    # the best of the others stay, in the same order
    policy, layer = policies.parse(spec), make_layer()
    plain = policy.select(layer, prompt_of(Shape()), 40)
    spans = ((60, 64),)
    for head, other in zip(
        policy.select(layer, prompt_of(Shape(), protected=spans), 44), plain, strict=True
    ):
        if not set(range(60, 64)) & set(other.tolist()):
            if policy.name == "h2o":
                continue  # more rows, more recent ones
            assert set(other.tolist()) <= set(head.tolist())


@pytest.mark.parametrize("span", [(-1, 4), (5, 4), (100, 132)])
def test_spans_outside_of_the_prompt_are_refused(span):
    prompt = prompt_of(Shape(), protected=(span,))
    with pytest.raises(ConfigError, match="is not within the prompt of 131 tokens"):
        policies.parse("snapkv").select(make_layer(), prompt, 10)


# what a policy gives back


@pytest.mark.parametrize(("spec", "shape"), list(product(ALL, SHAPES)))
def test_ids_are_ascending_distinct_prefix_rows(spec, shape):
    policy, layer, prompt = policies.parse(spec), make_layer(shape), prompt_of(shape)
    m = shape.n - WINDOW
    n_always = len(policy.always(prompt))
    for n_rows in {n_always, max(n_always, m // 2), m}:
        kept = policy.select(layer, prompt, n_rows)
        assert kept.dtype == np.int32
        assert kept.shape == (shape.n_head_kv, n_rows)
        assert (np.diff(kept, axis=1) > 0).all()
        assert kept.size == 0 or (kept.min() >= 0 and kept.max() < m)


@pytest.mark.parametrize("spec", ALL)
def test_a_prompt_within_the_window_has_no_rows_to_choose_from(spec):
    policy, layer = policies.parse(spec), make_layer(Shape(n=WINDOW))
    prompt = prompt_of(Shape(n=WINDOW))
    assert policy.rows(0, [layer], prompt) == [0]
    assert policy.select(layer, prompt, 0).shape == (2, 0)


@pytest.mark.parametrize("spec", ALL)
def test_more_rows_than_there_are_are_refused(spec):
    for n_rows in (-1, 123):
        with pytest.raises(ConfigError, match=f"n_rows={n_rows}: the prompt has 122 rows before"):
            policies.parse(spec).select(make_layer(), prompt_of(Shape()), n_rows)


@pytest.mark.parametrize("spec", ALL)
def test_scores_are_computed_once_for_all_budgets(spec, monkeypatch):
    policy, layer, prompt = policies.parse(spec), make_layer(), prompt_of(Shape())
    small = policy.select(layer, prompt, 20)

    def fail(*arguments):
        raise AssertionError("scored again")

    monkeypatch.setattr(scoring, "attention", fail)
    monkeypatch.setattr(type(getattr(policy, "of", policy)), "score", fail)
    assert policy.select(layer, prompt, 40).shape == (2, 40)
    np.testing.assert_array_equal(policy.select(layer, prompt, 20), small)


def test_layers_and_policies_do_not_share_scores():
    prompt = prompt_of(Shape())
    first, second = make_layer(index=0), make_layer(index=1)
    specs = ("snapkv-paper", "snapkv-paper:aggregation=max", "value")
    kept = [
        policies.parse(spec).select(layer, prompt, 30).tolist()
        for spec, layer in product(specs, (first, second))
    ]
    fresh = [
        policies.parse(spec).select(layer, prompt_of(Shape()), 30).tolist()
        for spec, layer in product(specs, (first, second))
    ]
    assert kept == fresh
    assert len({str(ids) for ids in kept}) == 6


def test_a_layer_of_another_prompt_is_refused():
    with pytest.raises(ConfigError, match="layer 0 of 131 positions: is not of the prompt of 130"):
        policies.parse("snapkv").select(make_layer(), PromptView(130, WINDOW), 5)


@pytest.mark.parametrize("name", ["question", "windows"])
def test_a_prompt_without_a_question_is_refused(name):
    policy = policies.parse(name)
    with pytest.raises(ConfigError, match=f"policy {name}: the prompt has no question; ask in"):
        policy.n_observed(PromptView(131, WINDOW))
    for span in ((5, 5), (100, 132), (-1, 3)):
        with pytest.raises(ConfigError, match="is not a span of the prompt of 131 tokens"):
            policy.n_observed(PromptView(131, WINDOW, question=span))


@pytest.mark.parametrize(
    "form", ["", "kernel_size=21+self_weight=0.25+pooling=nosink+aggregation=max"]
)
@pytest.mark.parametrize("span", [(124, 128), (122, 131), (118, 126), (5, 130)])
def test_a_question_votes_as_far_as_it_is_in_the_window(form, span):
    layer, options = make_layer(), f"+{form}" if form else ""
    prefers = policies.parse(f"snapkv-paper:observation=question{options}")
    prompt = prompt_of(Shape(), question=span)
    whole = prompt_of(Shape(), question=(max(span[0], 131 - WINDOW), span[1]))
    asks = policies.parse("question" + (f":{form}" if form else ""))
    np.testing.assert_array_equal(prefers.select(layer, prompt, 40), asks.select(layer, whole, 40))
    assert prefers.n_observed(prompt) == 131 - whole.question[0]


@pytest.mark.parametrize("span", [None, (101, 115), (101, 122)])
@pytest.mark.parametrize("of", ["snapkv:", "snapkv-paper:", "value:", "sentence:of=snapkv:"])
def test_without_a_question_in_the_window_the_last_rows_vote(of, span):
    layer, prompt = make_layer(), prompt_of(Shape(), question=span)
    prefers, last = (policies.parse(f"{of}observation={n}") for n in ("question", min(16, WINDOW)))
    np.testing.assert_array_equal(prefers.select(layer, prompt, 40), last.select(layer, prompt, 40))
    assert prefers.n_observed(prompt) == min(16, WINDOW)


@pytest.mark.parametrize(
    ("spec", "seeks", "asks"),
    [
        ("snapkv", True, False),
        ("snapkv-paper", False, False),
        ("snapkv-paper:observation=question", True, False),
        ("sentence:of=snapkv-paper:observation=question", True, False),
        ("sentence:of=question", True, True),
        ("joint", True, False),
        ("joint:of=question", True, True),
        ("windows", True, True),
        ("random", False, False),
    ],
)
def test_who_looks_for_a_question_and_who_needs_one(spec, seeks, asks):
    policy = policies.parse(spec)
    assert (policy.seeks(), policy.asks()) == (seeks, asks)


@pytest.mark.parametrize(
    ("spec", "n_observed"),
    [
        ("snapkv", min(16, WINDOW)),
        ("snapkv-paper", WINDOW),
        ("snapkv-paper:observation=40", 40),
        ("snapkv-paper:observation=500", 131),
        ("streaming", 0),
        ("random", 0),
        ("h2o", 131),
        ("value:observation=2", 2),
        ("question", 131 - QUESTION[0]),
        ("windows", 131 - QUESTION[0]),
        ("windows:observation=50", 50),
        ("pyramid:of=question", 131 - QUESTION[0]),
        ("adaptive:of=streaming", WINDOW),
        ("adaptive:of=snapkv-paper:observation=50", 50),
        ("sentence:of=h2o", 131),
        ("joint:of=h2o", 131),
        ("expected", 131),
        ("expected:observation=50", 50),
        ("replay", 0),
        ("level:of=expected:observation=50", 50),
    ],
)
def test_queries_that_a_policy_needs(spec, n_observed):
    assert policies.parse(spec).n_observed(prompt_of(Shape())) == n_observed


@pytest.mark.parametrize(
    "spec",
    [
        "snapkv-paper:kernel_size=5",
        "snapkv-paper:kernel_size=13+aggregation=max",
        "snapkv-paper:kernel_size=7+pooling=max",
        "snapkv-paper:kernel_size=21+self_weight=0.25+pooling=nosink+aggregation=max",
        "value:kernel_size=5",
        "value:kind=caote+kernel_size=5",
    ],
)
def test_a_window_larger_than_the_prompts_stays_as_the_engines_would(spec):
    layer = make_layer(Shape(n=200, group=2), n_observed=64)
    large = policies.parse(spec).select(layer, PromptView(200, 32), 40)
    small = policies.parse(f"{spec}+observation=32")
    kept = small.select(layer, PromptView(200, 16), 40 + 16)
    rest = np.tile(np.arange(200 - 32, 200 - 16), (len(large), 1))
    np.testing.assert_array_equal(kept, np.concatenate([large, rest], axis=1))
    with pytest.raises(ConfigError, match="does not hold 16 protected rows"):
        small.select(layer, PromptView(200, 16), 15)
