"""measure/ops.py: what test-snapkv-ops printed on a GPU becomes a record, and that a table."""

import json

import pytest

import machine_tables
import ops

ROW = {"n": 4096, "fused_ms": 0.25, "stock_ms": 2.05}


def printed(folder, last, factor=1.0):
    """Files as earlier runs leave them; portable kernels take `factor` times as long."""
    for name in ops.KERNELS:
        (folder / f"ops-{name}.txt").write_text(f"CUDA0: Test GPU 9\n{last}\n")
        for dims, group in ops.SHAPES:
            row = {**ROW, "fused_ms": ROW["fused_ms"] * (factor if name == "portable" else 1)}
            device = {"description": "Test GPU 9", "head_dim": dims, "group": group, "rows": [row]}
            (folder / f"perf-{name}-d{dims}-g{group}.json").write_text(json.dumps([device]))


@pytest.mark.parametrize(("last", "rc"), [("OK: 3 cases", 0), ("FAILED: 3 cases", 1)])
def test_the_record_and_its_table(tmp_path, last, rc):
    printed(tmp_path, last, factor=8)
    assert ops.main(["--lib", "nowhere", "--out", str(tmp_path), "--commit", "0123456789ab"]) == rc
    record = json.loads((tmp_path / "ops-test-gpu-9.json").read_text())
    assert {found["passed"] for found in record["kernels"].values()} == {rc == 0}
    table = machine_tables._ops(tmp_path / "ops-test-gpu-9.json")
    assert "| 128 | 4 | 4,096 | 0.25 | 2.00 | 2.0 |" in table
    assert "Test GPU 9, commit 012345678" in table


def test_a_record_without_times(tmp_path):
    printed(tmp_path, "OK: 3 cases, 0 failed")
    for file in tmp_path.glob("perf-*"):
        file.unlink()
    arguments = ["--lib", "nowhere", "--out", str(tmp_path), "--commit", "0123456789ab"]
    assert ops.main([*arguments, "cases", "--kernels", "mma"]) == 0
    record = json.loads((tmp_path / "ops-test-gpu-9.json").read_text())
    assert list(record["kernels"]) == ["mma"]
    assert record["command"].endswith("cases --kernels mma")
    text = machine_tables.ops(tmp_path)
    assert "not measured yet" in text
    assert "OK: 3 cases, 0 failed" in text


def test_without_a_record(tmp_path):
    assert "not measured" in machine_tables.ops(tmp_path)
