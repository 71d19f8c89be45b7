"""`snapkv-local bench` on a made model, and `compare` of what it wrote."""

import json
import os
import subprocess
import sys

import gguf
import pytest

from snapkv_local.bench.make_model import make_model
from snapkv_local.bench.shapes import SHAPES
from snapkv_local.native import library


def command(*arguments):
    # the tests have chosen a library for their own process
    hidden = (library.ENV_LLAMA_CPP, library.ENV_MTMD)
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    line = [sys.executable, "-m", "snapkv_local", *map(str, arguments)]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "tiny-q8_0.gguf"
    make_model(SHAPES["tiny"], "q8_0", path, name="Tiny")
    return path


@pytest.fixture(scope="module")
def done(model):
    """Its record and what it printed."""
    out = model.with_name("record.json")
    options = ["--prompt-tokens", "200,300", "--budget", "64", "--full", "--ubatch", "64"]
    options += ["--threads", "1", "--decode-tokens", "4", "--repeat", "2", "--note", "a test"]
    result = command("bench", *options, model, "--json", out)
    assert result.returncode == 0, result.stderr
    return out, result


def test_the_record_has_every_run(done):
    record = json.loads(done[0].read_text())
    assert [run["case"] for run in record["runs"]] == list(record["summary"]) * 2
    assert len(record["summary"]) == 4
    assert record["failures"] == []
    assert record["note"] == "a test"
    assert record["models"]["tiny-q8_0"]["n_bytes"] > 0
    assert record["build"]["patched"]
    for run in record["runs"]:
        assert run["peak_rss"] > 10 * 2**20
        assert 0 < run["seconds_first_token"] <= run["seconds_prefill"]
        assert run["decode_tokens_per_second"][0] > 0
        if run["settings"]["config"] is None:
            assert run["stats"] is None
        else:
            assert run["stats"]["n_kept"] == 64


def test_the_full_cache_is_as_large_as_the_compressed_run_says(done):
    """The saved state has a few bytes for each cell beside its KV."""
    runs = json.loads(done[0].read_text())["runs"]
    full = {r["settings"]["n_prompt"]: r["bytes_kept"] for r in runs if r["stats"] is None}
    for run in runs:
        if run["stats"]:
            n_prompt = run["settings"]["n_prompt"]
            of_full = run["stats"]["bytes_kv_full"]
            # cells are padded to 256
            assert of_full * n_prompt / (-(-n_prompt // 256) * 256) <= full[n_prompt] * 1.01
            assert full[n_prompt] <= of_full * 1.05


def test_each_run_is_reported(done):
    # the others say how far it is, every few seconds
    lines = [line for line in done[1].stderr.splitlines() if " so far" not in line]
    assert len(lines) == 8
    assert lines[0].startswith("1/8 200 tokens, full cache, f16 KV, run 1: first token ")
    assert "tiny, q8_0" in done[1].stdout


def test_compare_reads_it(done):
    result = command("compare", done[0], "--json")
    assert result.returncode == 0, result.stderr
    (record,) = json.loads(result.stdout)["records"]
    assert {case["n_runs"] for case in record["cases"]} == {2}
    assert {case["cache"] for case in record["cases"]} == {"full cache", "budget 64, G = auto"}


def test_a_run_that_fails_is_an_error_and_recorded(tmp_path):
    path = tmp_path / "broken.gguf"
    writer = gguf.GGUFWriter(path, "llama")  # a header that can be read, of a model without weights
    writer.add_block_count(2)
    writer.add_context_length(1024)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    result = command(
        "bench", path, "--prompt-tokens", "200", "--budget", "64", "--repeat", "2", "--json"
    )
    assert result.returncode == 1
    assert "FAILED: ended with 1: " in result.stderr
    assert "llama.cpp cannot load it" in result.stderr
    record = json.loads(result.stdout)
    assert record["runs"] == []
    assert len(record["failures"]) == 1
