"""The NumPy oracle itself, against numbers worked out by hand."""

import numpy as np
import pytest

from snapkv_local.policies import reference


def keys(*rows: list[float]) -> np.ndarray:
    """[n_head_kv, n, 1]: a query of 1 attends in proportion to the numbers."""
    return np.log(np.array(rows))[:, :, None]


ONE = np.ones((1, 2, 1))  # two window rows of one head


def test_window_rows_do_not_see_later_positions():
    # row 0 stands at position 2 of 4, row 1 at position 3
    weights = reference.attention(ONE, keys([1, 2, 3, 4]), scale=1.0)
    np.testing.assert_allclose(weights, [[[1 / 6, 2 / 6, 3 / 6, 0], [0.1, 0.2, 0.3, 0.4]]])


def test_the_scale_is_applied_to_the_dot_products():
    # exp(log(k) / 2) = sqrt(k)
    weights = reference.attention(ONE[:, :1], keys([1, 4, 9]), scale=0.5)
    np.testing.assert_allclose(weights, [[[1 / 6, 2 / 6, 3 / 6]]])


def test_softcap_bounds_the_logits():
    q, k = np.ones((1, 1, 1)), np.array([[[0.0], [1000.0]]])
    weights = reference.attention(q, k, scale=1.0, softcap=1.0)
    np.testing.assert_allclose(weights, [[[1 / (1 + np.e), np.e / (1 + np.e)]]])


def test_query_heads_read_the_kv_head_of_their_group():
    # four query heads, two KV heads: 0 and 1 read KV head 0
    weights = reference.attention(np.ones((4, 1, 1)), keys([1, 3], [3, 1]), scale=1.0)
    np.testing.assert_allclose(weights[:, 0, 0], [0.25, 0.25, 0.75, 0.75])


@pytest.mark.parametrize(("q", "k"), [((3, 1, 1), (2, 4, 1)), ((1, 5, 1), (1, 4, 1))])
def test_shapes_that_do_not_fit_are_refused(q, k):
    with pytest.raises(ValueError, match="does not fit"):
        reference.attention(np.ones(q), np.ones(k), scale=1.0)


def test_average_pooling_counts_the_zero_padding():
    # as torch.avg_pool1d(count_include_pad=True): 3 / 3 at the border, not 3 / 2
    np.testing.assert_allclose(reference.pool(np.array([1.0, 2.0, 6.0]), 3), [1, 3, 8 / 3])
    # kernel 5 over 3 positions: two of the five are padding even in the middle
    np.testing.assert_allclose(reference.pool(np.array([1.0, 2.0, 6.0]), 5), [9 / 5] * 3)


def test_max_pooling():
    votes = np.array([1.0, 2.0, 6.0, 0.0, 0.0, 0.5])
    np.testing.assert_allclose(reference.pool(votes, 3, "max"), [2, 6, 6, 6, 0.5, 0.5])


def test_an_attention_sink_lifts_no_neighbour():
    votes = np.array([[6.0, 1.0, 2.0, 0.0]])
    pooled = reference.pool(votes, 3, "nosink")
    np.testing.assert_allclose(pooled, [[1 / 3, 1, 1, 2 / 3]])
    assert votes[0, 0] == 6


def test_a_kernel_of_one_changes_nothing():
    votes = np.array([[1.0, 2.0], [3.0, 0.0]])
    for kind in ("avg", "max", "nosink"):
        np.testing.assert_array_equal(reference.pool(votes, 1, kind), votes)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # columns 0 and 1 of the weights [1/6, 2/6, ...] and [0.1, 0.2, ...]
        ({"kernel_size": 1}, [1 / 6 + 0.1, 2 / 6 + 0.2]),
        ({"kernel_size": 1, "aggregation": "max"}, [1 / 6, 2 / 6]),
        ({"kernel_size": 3}, [(1 / 6 + 0.1 + 2 / 6 + 0.2) / 3] * 2),
        ({"kernel_size": 3, "pooling": "max"}, [2 / 6 + 0.2] * 2),
        ({"kernel_size": 3, "pooling": "nosink"}, [(2 / 6 + 0.2) / 3] * 2),
        (
            {"kernel_size": 3, "pooling": "nosink", "self_weight": 0.5},
            [(2 / 6 + 0.2) / 3 + (1 / 6 + 0.1) / 2, (2 / 6 + 0.2) / 3 + (2 / 6 + 0.2) / 2],
        ),
        (
            {"kernel_size": 1, "pooling": "nosink", "self_weight": 0.5, "aggregation": "max"},
            [1.5 / 6, 3 / 6],
        ),
    ],
)
def test_scores_of_one_head(settings, expected):
    scores = reference.scores(ONE, keys([1, 2, 3, 4]), 1.0, **settings)
    np.testing.assert_allclose(scores, [expected])


def test_scores_are_pooled_before_the_heads_of_a_group_are_averaged():
    # head 0 attends to position 0 only, head 1 to position 3 only; position 4 is the window.
    # averaged before, maximum pooling would give 0.5 at all five
    q = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    k = np.full((1, 5, 2), -1000.0)
    k[0, 0, 0] = k[0, 3, 1] = 0.0
    scores = reference.scores(q, k, 1.0, kernel_size=5, pooling="max")
    np.testing.assert_allclose(scores, [[0.5, 1.0, 1.0, 0.5]])


def test_select_takes_the_best_in_ascending_order():
    kept = reference.select(np.array([[0.1, 0.9, 0.2, 0.8], [0.4, 0.3, 0.2, 0.1]]), 2)
    assert kept.tolist() == [[1, 3], [0, 1]]
    assert kept.dtype == np.int32


def test_select_takes_the_lower_position_of_equal_scores():
    assert reference.select(np.array([[0.5, 0.7, 0.5, 0.5]]), 3).tolist() == [[0, 1, 2]]


def test_sinks_come_first_whatever_their_scores():
    assert reference.select(np.array([[0.0, 0.0, 0.2, 0.9]]), 3, n_sink=2).tolist() == [[0, 1, 3]]


def test_select_does_not_change_its_input():
    score = np.array([[0.0, 1.0]])
    reference.select(score, 1, n_sink=1)
    assert score.tolist() == [[0.0, 1.0]]


def test_coverage_is_the_mass_on_kept_rows_and_the_window():
    kept = np.array([[1]], dtype=np.int32)
    # row 0: 2/6 + 3/6, row 1: 0.2 + 0.3 + 0.4
    coverage = reference.coverage(ONE, keys([1, 2, 3, 4]), 1.0, kept)
    np.testing.assert_allclose(coverage, [(5 / 6 + 0.9) / 2])


def test_coverage_of_everything_is_one():
    kept = np.array([[0, 1]], dtype=np.int32)
    np.testing.assert_allclose(reference.coverage(ONE, keys([1, 2, 3, 4]), 1.0, kept), [1])
