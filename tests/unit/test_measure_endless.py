"""The measurement of long answers: its pure parts. No model is loaded."""

import json

import numpy as np
import pytest

import endless
import endless_quality
from endless_speed import Followers, speed


def test_the_newest_rows_and_the_first():
    assert endless_quality.newest(10, 4, 0).tolist() == [6, 7, 8, 9]
    assert endless_quality.newest(10, 4, 2).tolist() == [0, 1, 8, 9]
    assert endless_quality.newest(10, 1, 2).tolist() == [0]
    assert endless_quality.newest(4, 4, 2).tolist() == [0, 1, 2, 3]


def test_speed_with_evictions_and_without():
    seconds = [50.0, 1.0, 1.0, 9.0, 1.0, 2.0, 2.0, 4.0]
    found = speed(seconds, [3, 7], 3)
    assert found["first"]["tokens_per_second"] == 1
    assert found["first"]["tokens_per_second_with_events"] == pytest.approx(3 / 11)
    assert found["last"]["tokens_per_second_median"] == 0.5
    assert found["last"]["n_events"] == 1
    assert found["last_to_first"]["tokens_per_second"] == 0.5
    assert found["last_to_first"]["tokens_per_second_with_events"] == pytest.approx(11 / 8)


def test_kl_of_rows():
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.25, 0.5])
    full = np.log(np.array([p, p], np.float32)) + 3
    other = np.log(np.array([q, p], np.float32)) - 2
    expected = [(p * np.log(p / q)).sum(), 0]
    np.testing.assert_allclose(endless_quality.kl(full, other), expected, atol=1e-6)


def test_who_is_nearer():
    found = endless_quality.nearer([1.0, 2.0, 3.0], [2.0, 2.0, 8.0])
    assert found == {"means": [2.0, 4.0], "n_nearer": 2, "n": 3}


def test_followers_are_what_would_repeat_the_last_tokens():
    followers = Followers(3)
    text = [1, 2, 3, 1, 2, 4, 1]
    assert followers.of(text) == []
    assert followers.of([*text, 2]) == [3, 4]
    assert followers.of([*text, 2, 9]) == []
    assert followers.of([*text, 2, 9, 1, 2]) == [3, 4, 9]
    assert Followers(3).of([1]) == []


def test_the_record_adds_up():
    record = json.loads(endless.RECORD.read_text(encoding="utf-8"))
    settings = record["settings"]
    n_events = (settings["n_new"] - 1) // settings["snapkv"]["decode_cells"]
    for run in record["speed"]:
        assert len(run["seconds"]) == settings["n_new"]
        assert len(run["events"]) == len(run["evictions"]) == n_events
        for clock, seconds in (("wall", run["seconds"]), ("cpu", run["seconds_cpu"])):
            expected = speed(seconds, run["events"], endless.N_COMPARED)
            assert run[clock]["last_to_first"] == pytest.approx(expected["last_to_first"])
    for text in record["quality"]:
        kls = text["kl_by_stretch"]
        assert {len(values) for values in kls.values()} == {n_events + 1}
        for pair, found in text["against"].items():
            a, b = pair.split(" / ")
            assert found == endless_quality.nearer(kls[a], kls[b])
