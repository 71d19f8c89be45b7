"""`plan --measure`: predictions beside a real prefill."""

import json
import subprocess
import sys

import pytest

ARGUMENTS = ("--ctx", "800", "--budget", "128", "--decode-cells", "128", "--threads", "1")


def measure(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """In a process of its own, so that its peak memory is its own."""
    command = [sys.executable, "-m", "snapkv_local", "plan", "demo", "--measure", *ARGUMENTS]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300)


# quantized KV: the model of compute buffers is one of f16
@pytest.mark.parametrize(
    ("options", "rel"),
    [
        ((), 0.005),
        (("--layer-group", "7"), 0.005),
        (("--layer-group", "7", "--kv-type", "q8_0"), 0.1),
    ],
)
def test_predictions_hold(options: tuple[str, ...], rel: float) -> None:
    result = measure("--json", *options)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    parts = {part["part"]: part for part in found["parts"]}
    assert set(parts) == {
        "weights", "kv", "kv_group", "hidden", "mask", "compute", "full KV, not taken",
        "process", "peak of the process",
    }  # fmt: skip
    assert found["ok"] and not any(part["misses"] for part in parts.values())
    assert found["predicted_layer_group"] == found["prefill"]["layer_group"]
    # counted to the byte
    for name in ("weights", "kv", "kv_group", "hidden", "mask", "full KV, not taken"):
        assert parts[name]["predicted"] == parts[name]["measured"], name
    # a model of what ggml's allocator does, but for small inputs
    assert parts["compute"]["predicted"] == pytest.approx(parts["compute"]["measured"], rel=rel)
    assert "\r" not in result.stderr  # no terminal
