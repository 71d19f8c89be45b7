"""The GPU script end to end on the CPU, with a made model: every case, check and kind of run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_shapes import small

import cases
import many
from snapkv_local import Llama, SnapKVConfig
from snapkv_local.bench import process
from snapkv_local.bench.make_model import make_model
from snapkv_local.bench.shapes import SHAPES
from snapkv_local.native import library

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """What `gpu.py --smoke` writes of one run a case; with the native test programs if they are built."""
    out = tmp_path_factory.mktemp("bench")
    built = sorted(
        ROOT.glob("build/py3-*/bin/test-snapkv-exact"), key=lambda path: path.stat().st_mtime
    )
    lib = built[-1].parent if built else library.find()
    command = [sys.executable, str(ROOT / "measure" / "gpu.py"), "--smoke", "--out", str(out)]
    # tests/unit/test_bench_cases.py has those that run again
    command += ["--models", str(out), "--lib", str(lib), "--repeats", "1"]
    # the tests have chosen a library for their own process
    hidden = (library.ENV_LLAMA_CPP, library.ENV_MTMD)
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, cwd=out
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1].startswith("check later_turns: passed")
    return json.loads((out / "smoke.json").read_text())


def test_every_case_runs(record):
    assert record["failures"] == []
    assert record["left_out"] == []
    assert list(record["summary"]) == [case.name for case in cases.CASES]
    for case in cases.CASES:
        runs = [run for run in record["runs"] if run["case"] == case.name]
        assert len(runs) == 1
        assert all(run["seconds_prefill"] > 0 for run in runs)
        assert all(min(run["decode_tokens_per_second"]) > 0 for run in runs)


def test_prompts_are_compressed_unless_the_full_cache_is_measured(record):
    for run in record["runs"]:
        if run["settings"]["config"] is None:
            assert run["stats"] is None
        else:
            assert run["stats"]["n_kept"] == 64
            assert run["stats"]["n_prompt"] == run["settings"]["n_prompt"]


def test_the_first_token_is_that_of_the_full_cache(record):
    first = {run["case"]: run["first_tokens"] for run in record["runs"]}
    against = {run["case"]: run["against"] for run in record["runs"] if run["against"]}
    assert {first[name] == first[other] for name, other in against.items()} == {True}


def test_two_sequences_are_decoded(record):
    (run,) = [run for run in record["runs"] if run["case"] == "batch2-7b-16k"]
    assert len(run["first_tokens"]) == 2


def test_checks_pass(record):
    kept = record["checks"]["kept_sets"]
    assert kept["f32_weights"]["jaccard_mean"] == kept["quantized_weights"]["jaccard_mean"] == 1.0
    assert kept["same_input"]["jaccard_mean"] > 0.999  # ties
    turns = record["checks"]["later_turns"]
    assert turns["passed"] and turns["n_cached"] > 0, turns
    assert record["checks"]["exact"]["passed"] is not False


@pytest.mark.parametrize("name", ["many-7b-4", "many-7b-4-plain"])
def test_sequences_with_a_copy_of_the_prompt_say_the_same(tmp_path, name):
    (case,) = cases.select([name], many.CASES)
    path = tmp_path / "tiny.gguf"
    make_model(SHAPES["tiny"], "f16", path, name="tiny")
    settings = {**cases.smoke(case, gpu=False).settings(), "path": str(path)}
    results = [process.work("run", {**settings, "n_seq": n_seq}, timeout=60)[0] for n_seq in (1, 4)]
    alone, together = (result["last_tokens"] for result in results)
    assert together == 4 * alone
    # a saved state counts all sequences
    assert results[1]["bytes_kept"] == pytest.approx(4 * results[0]["bytes_kept"], rel=1e-3)


def test_a_run_that_fails_says_why(tmp_path):
    settings = {
        **cases.smoke(cases.CASES[0], gpu=False).settings(),
        "path": str(tmp_path / "none.gguf"),
    }
    result, error = process.work("run", settings, timeout=60)
    assert result is None
    assert error.startswith(f"ended with 1: {tmp_path / 'none.gguf'}: does not exist; ")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tiny", "q8_0"),
        ("tiny", "f16"),
        ("llama31-8b", "q4_0"),
        ("qwen3-8b", "q4_0"),
        ("qwen3-30b-a3b", "q4_0"),
        ("gemma3-4b", "q4_0"),
    ],
)
def test_made_models_of_every_kind_run(tmp_path, name, kind):
    """Each architecture with few and small layers."""
    path = tmp_path / "model.gguf"
    make_model(small(name), kind, path, name=name)
    llm = Llama(
        str(path),
        snapkv=SnapKVConfig(budget=48, window_size=8, decode_cells=64),
        n_ctx=1024,
        n_ubatch=64,
        n_threads=1,
        verbose=False,
    )
    text = "Größe 1 → 2\n".encode()
    assert llm.detokenize(llm.tokenize(text)) == text
    stats = llm.prefill(np.random.default_rng(1).integers(0, 500, 200).tolist())
    assert stats.n_kept == 48
    logits = llm.logits_for([1, 2, 3])
    assert np.isfinite(logits).all()
    assert 0.3 < logits.std() < 3  # activations neither vanish nor explode
    kept = llm.kept_positions()
    assert (kept[0, 0] != kept[0, 1]).any()  # heads are not copies of each other
    llm.close()
