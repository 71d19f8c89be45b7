"""The GPU script without a GPU: its table of cases, its choice of them, its time box, its record."""

import json

import pytest

import cases
import device
import gpu
import many
from checks import jaccard
from figures import table
from snapkv_local import SnapKVConfig
from snapkv_local.bench.shapes import SHAPES
from snapkv_local.bench.summary import summarize


def result(prefill=2.0, decode=(1.0, 2.0), stats=None):
    return {
        "seconds_prefill": prefill,
        "prefill_tokens_per_second": 100 / prefill,
        "decode_tokens_per_second": list(decode),
        "stats": stats,
        "peak_device": None,
        "peak_rss": 2**30,
    }


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A Bench whose runs take no time and succeed; `runs` notes them."""

    def make(*arguments):
        # a place for the record only
        args = gpu.parse(["--out", str(tmp_path), "--lib", str(tmp_path), "--smoke", *arguments])
        found = gpu.Bench(args)
        found.runs = []

        def run(case):
            found.runs.append(case.name)
            return result(), ""

        monkeypatch.setattr(found, "run", run)
        return found, args.cases

    return make


def test_cases_are_sane():
    names = [case.name for case in cases.CASES]
    assert len(set(names)) == len(names)
    for case in cases.CASES:
        assert case.model in SHAPES
        assert case.against is None or (case.against in names and case.config is not None)
        assert cases.N_WARMUP + case.n_decode * case.decode_repeats <= cases.DECODE_CELLS
        assert case.n_decode >= 64
        if case.config is not None:
            config = SnapKVConfig(**case.settings()["config"])
            assert config.n_kept(case.n_prompt) < case.n_prompt
        assert (case.config is None) == ("-plain" in case.name)


def test_what_is_compared_differs_in_nothing_else():
    by_name = {case.name: case for case in cases.CASES}
    for case in cases.CASES:
        if case.against is not None:
            other = by_name[case.against]
            for field in ("model", "n_prompt", "n_seq", "n_ubatch", "kv_type", "n_gpu_layers"):
                assert getattr(case, field) == getattr(other, field)


def test_many_sequences_have_the_same_number_of_each_in_full_caches():
    by_name = {case.name: case for case in many.CASES}
    assert len(by_name) == len(many.CASES) == 14
    for case in many.CASES:
        assert case.one_prompt and case.n_prompts == 1
        assert cases.N_WARMUP + case.n_decode * case.decode_repeats <= cases.DECODE_CELLS
        if case.config is not None:
            plain = by_name[case.against]
            assert (plain.n_seq, plain.model, plain.config) == (case.n_seq, case.model, None)
    assert sum(case.seconds for case in many.CASES) <= 150
    chosen = cases.select(["many-7b-16*"], many.CASES)
    assert [case.name for case in chosen] == ["many-7b-16", "many-7b-16-plain"]


def test_smoke_cases_do_the_same_in_small():
    for full in cases.CASES:
        case = cases.smoke(full, gpu=False)
        assert (case.n_gpu_layers, case.leave_free) == (0, None)
        assert (cases.smoke(full, gpu=True).n_gpu_layers == -1) == (full.n_gpu_layers == -1)
        assert case.n_prompt < 1024
        if case.config is not None:
            config = SnapKVConfig(**case.settings()["config"])
            assert config.n_kept(case.n_prompt) < case.n_prompt


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["headline"], ["headline-7b-380k", "headline-8b-512k"]),
        (["batch2-7b-16k"], ["batch2-7b-16k"]),
        (["decode-7b-*"], ["decode-7b-64k", "decode-7b-64k-plain"]),
        (["*cap8", "decode-8b-16k"], ["decode-8b-16k", "memory-8b-128k-cap8"]),
    ],
)
def test_selection(patterns, names):
    assert [case.name for case in cases.select(patterns)] == names


def test_speed_is_a_group_of_steps():
    steps = {case.step for case in cases.select(["speed"])}
    assert steps == {"decode", "prefill", "batch2", "partial"}


def test_other_settings_are_in_the_name():
    compressed, plain = cases.select(["batch2"])
    changed = cases.with_config(compressed, {"layer_group": 4})
    assert changed.name == "batch2-7b-16k+layer_group=4"
    assert changed.settings()["config"] == {"decode_cells": 512, "budget": 2048, "layer_group": 4}
    assert cases.with_config(plain, {"layer_group": 4}) == plain


@pytest.mark.parametrize(
    "arguments", [[], ["--out", "x", "nothing"], ["--out", "x", "--set", "ops"]]
)
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as e:
        gpu.parse(arguments)
    assert e.value.code == 2


def test_repeats_alternate(bench):
    b, chosen = bench("prefill-8b-128k", "prefill-8b-128k-plain")
    b.measure(chosen)
    assert b.runs == ["prefill-8b-128k", "prefill-8b-128k-plain"] * 2


def test_time_box_leaves_out_what_does_not_fit(bench):
    b, chosen = bench("headline", "--minutes", "0.01")  # a smoke case is estimated to take 3 s
    b.measure(chosen)
    assert b.runs == []
    b.save()
    left = json.loads(b.path.read_text())["left_out"]
    assert [x["case"] for x in left] == ["headline-7b-380k", "headline-8b-512k"]
    assert "left out: headline-8b-512k" in table(b.record)


def test_time_box():
    assert gpu.TimeBox(None).left() == float("inf")
    assert gpu.TimeBox(None).timeout(120) == 120
    assert 50 < gpu.TimeBox(1).timeout(120) < 59
    assert gpu.TimeBox(0).timeout(120) == 1


def test_a_failure_is_recorded_and_stops_nothing(bench, monkeypatch):
    b, chosen = bench("headline")

    def run(case):
        return (None, "ended with 1: trace\nno memory") if "7b" in case.name else (result(), "")

    monkeypatch.setattr(b, "run", run)
    b.measure(chosen)
    record = json.loads(b.path.read_text())
    assert [r["case"] for r in record["runs"]] == ["headline-8b-512k"]
    assert [f["case"] for f in record["failures"]] == ["headline-7b-380k"]
    assert "failed: headline-7b-380k: no memory" in table(record)


def test_a_case_that_runs_again_replaces_its_runs(bench):
    for patterns in (["headline"], ["headline-7b-380k"]):
        b, chosen = bench(*patterns)
        b.measure(chosen)
    assert sorted(r["case"] for r in b.record["runs"]) == ["headline-7b-380k", "headline-8b-512k"]
    assert set(b.record["summary"]) == {"headline-7b-380k", "headline-8b-512k"}


def test_every_run_has_its_commit_and_settings(bench):
    b, chosen = bench("batch2", "--commit", "abc")
    b.measure(chosen)
    record = json.loads(b.path.read_text())
    assert {"date", "commit", "machine", "device", "summary", "runs"} <= set(record)
    for run in record["runs"]:
        assert run["commit"] == "abc"
        assert run["settings"]["n_seq"] == 2
        assert run["settings"]["decode_cells"] == 512


def test_summary_has_medians_over_all_decode_runs():
    case = cases.CASES[0]
    stamp = {"case": "a", "label": "A", "against": None, "settings": case.settings()}
    runs = [{**stamp, **result(prefill, decode)} for prefill, decode in ((1, (5, 7)), (3, (9,)))]
    summary = summarize(runs)["a"]
    assert (summary["n_runs"], summary["n_decode_runs"]) == (2, 3)
    assert (summary["seconds_prefill"], summary["decode_tokens_per_second"]) == (2, 7)
    assert summary["decode_ms_per_step"] == pytest.approx(1000 / 7)


def test_jaccard_of_kept_sets():
    a = [[[1, 2, 3], [1, 2, 3]]]
    b = [[[1, 2, 3], [2, 3, 4]]]
    assert jaccard(a, b).tolist() == [[1.0, 0.5]]


def test_machine_without_a_gpu(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert device.describe() == {}
    with device.held(None, {}) as held:
        assert held == {}
