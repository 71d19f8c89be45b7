"""`doctor --prove` without a device: what is asked, what the record says, and what people read."""

import json

import pytest
from click.testing import CliRunner

from snapkv_local.bench import proof
from snapkv_local.bench.runner import Machine
from snapkv_local.cli import main
from snapkv_local.cli.doctor import show_proof

CPU = {
    "name": "CPU",
    "backend": "CPU",
    "description": "a processor",
    "kind": "cpu",
    "memory_free": 5,
    "memory_total": 9,
}
GPU = {**CPU, "name": "Vulkan0", "backend": "Vulkan", "kind": "gpu", "description": "a GPU"}
BLAS = {**CPU, "name": "BLAS", "kind": "accelerator"}
FIGURES = {
    "prefill_tokens_per_second": 1000.0,
    "decode_tokens_per_second": [50.0],
    "stats": None,
    "peak_rss": 1,
}


def case(question, diff=0.0, ops=-1.0):
    return {**question, "max_diff": diff, "max_diff_ops": ops}


@pytest.fixture
def worker(monkeypatch, tmp_path):
    """Stands in for the worker's processes; `diffs` has what devices are to be wrong by."""
    asked = []
    diffs: dict[str, float] = {}

    def work(verb, given, environment=None, timeout=None):
        asked.append((verb, given, environment))
        if verb == "run":
            return FIGURES, ""
        if given["device"] == "Vulkan0" and given["questions"][0]["head_dim"] == 256:
            return None, "ended with -6: GGML_ASSERT"
        ops = 1e-6 if given["device"] == "CPU" else -1.0
        cases = [case(q, diffs.get(given["device"], 0.0), ops) for q in given["questions"]]
        return {"cases": cases, "failures": []}, ""

    monkeypatch.setattr(proof, "work", work)
    return asked, diffs


def record(names=(), notes=None):
    machine = Machine({"version": "1"}, [CPU, GPU, BLAS])
    return proof.make_record(machine, names, "model.gguf", (notes or []).append)


def test_each_size_of_heads_is_asked_with_each_kv_type_and_group():
    for head in proof.HEADS:
        asked = proof.questions(head)
        kinds = {q["kv_type"] for q in asked}
        assert kinds == ({"f16"} if head["head_dim"] in (80, 96) else {"f16", "q8_0"})
        assert [q["layer_group"] for q in asked] == [1, 4, 0] * len(kinds)
        assert head["n_head"] % head["n_head_kv"] == 0


def test_a_record_has_a_verdict_for_each_device_that_computes_layers(worker):
    asked, _ = worker
    found = record()
    cpu, gpu = found["devices"]
    assert (cpu["name"], cpu["exact"], cpu["fused"], cpu["ops_agree"]) == ("CPU", True, 1.0, True)
    assert len(cpu["cases"]) == 24 and not cpu["failures"]
    # a process that ended is no proof, and the others are asked all the same
    assert (gpu["exact"], gpu["fused"], gpu["max_diff"]) == (False, 0.0, 0.0)
    assert [failure["error"] for failure in gpu["failures"]] == ["ended with -6: GGML_ASSERT"]
    assert len(gpu["cases"]) == 18
    runs = [(given, environment) for verb, given, environment in asked if verb == "run"]
    assert [given["config"] for given, _ in runs] == [None, {"budget": proof.BENCH_BUDGET}]
    assert all(environment["SNAPKV_UNPROVEN"] == "2" for _, environment in runs)
    assert json.loads(json.dumps(found)) == found


def test_a_difference_is_no_proof(worker):
    worker[1]["CPU"] = 0.25
    (device,) = record(("CPU",))["devices"]
    assert (device["exact"], device["max_diff"]) == (False, 0.25)


def test_votes_that_differ_are_told():
    question = {"head_dim": 64}
    assert not proof.verdict([case(question, 0.0, 0.5)], [])["ops_agree"]
    assert proof.verdict([], [{"error": "all"}])["exact"] is False


def test_people_read_what_came_out_and_what_to_do_with_the_file(
    worker, tmp_path, capsys, monkeypatch
):
    monkeypatch.delenv("COLUMNS", raising=False)  # no line is wrapped
    worker[1]["Vulkan0"] = 1.5
    show_proof(record(), tmp_path / "x.json")
    said = capsys.readouterr().out
    assert "yes, difference 0 in 24 cases" in said
    assert "no: difference 1.5 in 18 cases, 1 failed" in said
    assert "x.json" in said and "send it" in said


@pytest.mark.parametrize(
    "arguments", [["--device", "CPU"], ["--prove", "needle"], ["--prove", "--device", "Nowhere"]]
)
def test_options_that_do_not_fit(arguments, monkeypatch):
    monkeypatch.setattr(Machine, "describe", classmethod(lambda cls: cls({}, [CPU])))
    assert CliRunner().invoke(main, ["doctor", *arguments]).exit_code == 2
