"""The measurement of refitted values: its arithmetic, against float64. No model is loaded."""

import json

import numpy as np
import pytest

import refit as measure_refit
from refitting import Head, Rotation, Variant, ridge_fit, weights

RATES = Rotation(10_000.0 ** (-np.arange(0, 8, 2) / 8))
N, WINDOW, ANSWER, D = 40, 6, 3, 8
KEPT = np.array([0, 3, 4, 11, 17, 29], np.int32)


def head(seed=0, group=2):
    rng = np.random.default_rng(seed)

    def rows(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    n = N + ANSWER
    return Head(rows(group, n, D), rows(n, D), rows(n, D), N, WINDOW, D**-0.5, RATES)


def attention(q, at, k, positions, scale):
    """One row after the other, in float64."""
    found = np.zeros((len(q), len(k)))
    for i, (row, place) in enumerate(zip(q.astype(np.float64), at, strict=True)):
        seen = positions <= place
        e = np.exp(scale * (k[seen].astype(np.float64) @ row))
        found[i, seen] = e / e.sum()
    return found


def test_attention_sees_what_is_not_later():
    rng = np.random.default_rng(1)
    q, k = (rng.standard_normal((n, D)).astype(np.float32) for n in (4, 7))
    at, positions = np.array([0, 2, 5, 30]), np.array([2, 4, 5, 6, 7, 30, 31])
    found = weights(q, at, k, positions, 0.3)
    assert found == pytest.approx(attention(q, at, k, positions, 0.3), abs=1e-6)
    assert not found[0].any()  # it stands before all of them


@pytest.mark.parametrize(("m", "r"), [(5, 12), (12, 5), (6, 6)])
def test_the_fit_is_ridge_regression(m, r):
    rng = np.random.default_rng(2)
    a, missing = (rng.random((m, n)).astype(np.float32) for n in (r, D))
    gram = a.T.astype(np.float64) @ a
    ridge = 0.1 * np.trace(gram) / min(m, r)
    expected = np.linalg.solve(gram + ridge * np.eye(r), a.T.astype(np.float64) @ missing)
    assert ridge_fit(a, missing, 0.1) == pytest.approx(expected, abs=1e-4)


def test_fitted_outputs_are_those_of_all_rows():
    one = head()
    rows = one.rows(KEPT)
    q, at, outputs = one.observed("window", 4)  # 8 queries, 12 rows
    a = attention(q, at, one.k[rows], rows, one.scale)
    full = attention(q, at, one.k[:N], np.arange(N), one.scale) @ one.v[:N]
    assert outputs == pytest.approx(full, abs=1e-5)
    before = np.abs(a @ one.v[rows] - full).max()
    assert np.abs(a @ one.values(Variant("window", 4, 1e-4), KEPT) - full).max() < before / 20
    assert np.abs(a @ one.values(Variant("window", 4, 100), KEPT) - full).max() > before / 2


def test_unchanged_values_are_the_caches():
    one = head()
    v = one.v[one.rows(KEPT)]
    assert (one.values(Variant("none"), KEPT) == v.astype(np.float16)).all()


def test_rows_that_are_looked_up_are_spared():
    one = head()
    one.k[11] = 4 * one.q[0, N - 2] / np.linalg.norm(one.q[0, N - 2]) * D**0.5
    place = KEPT.tolist().index(11)
    v = one.v[one.rows(KEPT)]
    changes = {
        by_vote: np.linalg.norm(one.values(Variant("window", 4, 0.1, by_vote), KEPT) - v, axis=1)
        for by_vote in (False, True)
    }
    shares = {by_vote: found[place] / found.sum() for by_vote, found in changes.items()}
    assert shares[True] < shares[False]


def test_the_error_is_of_the_answers_outputs():
    one = head()
    q = one.q[:, N:].reshape(-1, D)
    at = np.tile(np.arange(N, N + ANSWER), 2)
    places = np.arange(N + ANSWER)
    full = attention(q, at, one.k, places, one.scale) @ one.v
    stay = np.concatenate([one.rows(KEPT), np.arange(N, N + ANSWER)])
    short = attention(q, at, one.k[stay], stay, one.scale) @ one.v[stay]
    wrong, whole = one.error(KEPT, one.v[one.rows(KEPT)])
    assert wrong == pytest.approx(np.square(short - full).sum(), rel=1e-4)
    assert whole == pytest.approx(np.square(full).sum(), rel=1e-4)
    everything = np.arange(N - WINDOW, dtype=np.int32)
    assert one.error(everything, one.v[:N])[0] < 1e-9


def test_a_dropped_value_is_merged_into_that_of_the_most_similar_key():
    one = head()
    one.k[:N] *= 0.01  # votes of prefix rows are nearly equal
    one.k[20] = 1.5 * one.k[17]
    one.k[:N][[i for i in range(N - WINDOW) if i not in {17, 20}]] = 0.01
    one.k[17], one.k[20] = -one.k[17], -one.k[20]
    found = one.values(Variant("merge"), KEPT)
    of = dict(zip(one.rows(KEPT).tolist(), found, strict=True))
    lone = one.v[[17, 20]].astype(np.float64)
    share = np.linalg.lstsq((lone[1] - lone[0])[:, None], of[17] - lone[0], rcond=None)[0][0]
    assert 0.3 < share < 0.7
    assert of[17] == pytest.approx(lone[0] + share * (lone[1] - lone[0]), abs=1e-2)
    assert (found[len(KEPT) :] == one.v[N - WINDOW : N].astype(np.float16)).all()


def test_turning_queries_and_keys_alike_changes_no_product():
    rng = np.random.default_rng(3)
    q, k = (rng.standard_normal((1, 5, D)).astype(np.float32) for _ in range(2))
    by = np.array([1, 7, 100, 0, 3])
    turned = (RATES.turned(q, by) * RATES.turned(k, by)).sum(axis=2)
    assert turned == pytest.approx((q * k).sum(axis=2), abs=1e-4)
    assert RATES.turned(RATES.turned(q, by), -by) == pytest.approx(q, abs=1e-5)
    assert (RATES.turned(q, by)[0, 3] == q[0, 3]).all()


def case(document, before, after, kl):
    def scores(value):
        return {"kl": value, "exact": 1.0}

    return {
        "task": "needle",
        "length": 2048,
        "document": document,
        "errors": {"64": {"none": before, "merge": after, "window-16/1": before}},
        "scores": {"64": {"none": scores(0.5), "merge": scores(kl)}},
    }


def test_a_summary_has_paired_changes_and_their_intervals():
    cases = [case(str(i), 0.2, 0.1, kl) for i, kl in enumerate((0.1, 0.3, 0.5, 0.7))]
    rows = {row["variant"]: row for row in measure_refit.summary(cases)}
    merged = rows["merge"]
    assert (merged["n_cases"], merged["n_documents"], merged["error"]) == (4, 4, 0.1)
    assert merged["error_change"] == [-0.5, -0.5, -0.5]
    mean, low, high = merged["kl_change"]
    assert mean == pytest.approx(-0.1)
    assert -0.4 <= low < -0.1 < high <= 0.2
    assert rows["none"]["kl_change"] == [0, 0, 0]
    assert "kl" not in rows["window-16/1"]


def test_a_record_of_other_settings_is_not_gone_on_with(tmp_path):
    file = tmp_path / "record.json"
    fresh = {"model": "a.gguf", "settings": {"budgets": [64]}, "date": "now", "cases": []}
    assert measure_refit.opened(file, fresh) is fresh
    measure_refit.records.write(file, {**fresh, "date": "before", "cases": [{"id": "x"}]})
    assert measure_refit.opened(file, fresh) == {**fresh, "cases": [{"id": "x"}]}
    with pytest.raises(ValueError, match="another model or of other settings"):
        measure_refit.opened(file, {**fresh, "settings": {"budgets": [128]}})


@pytest.mark.parametrize("file", measure_refit.RECORDS.values(), ids=lambda file: file.stem)
def test_a_summary_is_that_of_its_cases(file):
    record = json.loads(file.read_text(encoding="utf-8"))
    assert record["settings"]["variants"] == [v.name for v in measure_refit.VARIANTS]
    again = measure_refit.summary(record["cases"])
    assert len(again) == len(record["summary"])
    for now, held in zip(again, record["summary"], strict=True):
        assert now.keys() == held.keys()
        for name, value in held.items():
            # the last digit may be rounded otherwise
            same = value if isinstance(value, str) else pytest.approx(value, abs=2e-6)
            assert now[name] == same
