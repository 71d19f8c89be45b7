"""The native test programs, which `make test.native` builds."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import architectures

ROOT = Path(__file__).resolve().parents[2]

Run = Callable[..., str]


@pytest.fixture(scope="session")
def binaries() -> Path:
    """Folder of the test programs, in the build folder of the wheel tag."""
    found = sorted(
        ROOT.glob("build/py3-*/bin/test-snapkv-exact"), key=lambda path: path.stat().st_mtime
    )
    if not found:
        pytest.fail("the native test programs are not built: run `make test.native`")
    return found[-1].parent


@pytest.fixture(scope="session")
def arch_models(binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with one tiny GGUF for each architecture that make-arch-models can build."""
    folder = tmp_path_factory.mktemp("architectures")
    architectures.make_models(binaries, folder)
    return folder


@pytest.fixture
def run(binaries: Path) -> Run:
    """Runs a test program; its output, or a failure with the output."""

    def run_program(name: str, *args: object, **environment: str) -> str:
        command = [str(binaries / name), *map(str, args)]
        environment = {**os.environ, **environment}
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        if result.returncode != 0:
            pytest.fail(
                f"{name} ended with {result.returncode}:\n{result.stdout}{result.stderr}",
                pytrace=False,
            )
        return result.stdout

    return run_program
