"""The measurement of several GPUs: what it makes of the programs' lines. No GPU is asked."""

import json
from argparse import Namespace

import pytest

import several
from snapkv_local.bench.shapes import SHAPES


def program(folder, text, code=0):
    """A folder of libraries whose test-snapkv-exact says a text."""
    file = folder / "test-snapkv-exact"
    file.write_text(f"#!/bin/sh\ncat <<'E'\n{text}\nE\nexit {code}\n")
    file.chmod(0o755)


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.setattr(several.device, "describe", lambda: {"name": "A GPU"})
    monkeypatch.setattr(several.Several, "n_gpus", staticmethod(lambda: 2))
    return several.Several(
        Namespace(lib=tmp_path, models=tmp_path, smoke=False, out=tmp_path / "out", commit="abc")
    )


def test_shapes_are_there():
    assert {shape for shape, *_ in (*several.EXACT, *several.SMALL)} <= set(SHAPES)


def test_lines_and_what_ends_the_program(call, tmp_path):
    line = {"model": "a", "supported": True, "exact": False, "runs": [{"max_diff": 0.5}]}
    program(tmp_path, "ggml: one\n" + json.dumps(line), 1)
    assert call.exact_lines("a.gguf") == [line]
    assert several.verdict(line) == "differences [0.5]"
    program(tmp_path, "nothing", 139)
    assert call.exact_lines("a.gguf") == [{"error": "ended with 139: "}]


def test_a_record_keeps_parts_that_are_not_measured_again(call, tmp_path):
    assert (call.path.name, call.record["n_devices"]) == ("several-a-gpu.json", 2)
    call.path.write_text(json.dumps({"exact": [1], "commit": "old"}))
    again = several.Several(
        Namespace(lib=tmp_path, models=tmp_path, smoke=True, out=tmp_path / "out", commit="abc")
    )
    assert (again.record["exact"], again.record["commit"]) == ([1], "abc")


def test_answers_and_what_is_said_instead():
    assert several.answer('{"text": "417"}') == "417"
    assert several.answer("Error: no room") == "Error: no room"
