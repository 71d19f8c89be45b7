"""What makes a wheel for others; the workflow and `make wheel` use the same."""

import sys
from pathlib import Path

import pytest

import repair_wheel

ROOT = Path(__file__).parents[2]


def test_the_workflow_and_make_use_it():
    line = "scripts/repair_wheel.py"
    assert f"python {{project}}/{line} {{wheel}} {{dest_dir}}" in (
        ROOT / ".github/workflows/wheels.yml"
    ).read_text(encoding="utf-8")
    assert f"$(PY) {line} build/wheel/*.whl dist" in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_drivers_stay_outside_and_a_failure_is_told(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["repair_wheel.py", "a.whl", "dist"])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert repair_wheel.main() == 1
    assert "pip install auditwheel" in capfd.readouterr().err
    script = tmp_path / "auditwheel"
    script.write_text('#!/bin/sh\necho "$@"\nexit 3\n')
    script.chmod(0o755)
    assert repair_wheel.main() == 3
    said = capfd.readouterr().out.split()
    assert said[:3] == ["repair", "--wheel-dir", "dist"] and said[-1] == "a.whl"
    assert {"libcuda.so.1", "libvulkan.so.1"} <= set(said)
