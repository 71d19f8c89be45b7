"""Which native library is loaded, and what stops it.

Each case in a process of its own: imports happen once.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from snapkv_local import process
from snapkv_local.native import library

ROOT = Path(__file__).resolve().parents[2]


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if k not in ("LLAMA_CPP_LIB_PATH", "MTMD_CPP_LIB")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, **environment},
        capture_output=True,
        text=True,
    )


def fails_with(code: str, *says: str, **environment: str) -> None:
    result = run(code, **environment)
    error = result.stderr.strip().splitlines()[-1]
    assert result.returncode != 0
    assert error.startswith("snapkv_local.errors.LibraryError: ")
    for part in says:
        assert part in error


def test_the_pin_has_one_value():
    assert (
        f'"llama-cpp-python=={library.LLAMA_CPP_PYTHON}"' in (ROOT / "pyproject.toml").read_text()
    )
    pin = (ROOT / "vendor/llama.cpp/pin.json").read_text()
    assert re.search(r'"llama_cpp_python": "(.*)"', pin)[1] == library.LLAMA_CPP_PYTHON


@pytest.mark.parametrize(
    "module",
    [
        "config",
        "policies",
        "stats",
        "errors",
        "models.resolve",
        "models.gguf_shape",
        "hardware",
        "policies.reference",
        "cli",
    ],
)
def test_loads_nothing_native(module):
    code = f"import sys, snapkv_local.{module}; assert 'llama_cpp' not in sys.modules"
    result = run(code)
    assert result.returncode == 0, result.stderr


def test_folder_without_a_library(tmp_path):
    fails_with(
        "from snapkv_local import Llama",
        f"SNAPKV_LOCAL_LIB={tmp_path}: has no llama library",
        SNAPKV_LOCAL_LIB=str(tmp_path),
    )


def fake(tmp_path: Path) -> str:
    (tmp_path / "libllama.so").touch()
    return str(tmp_path)


def test_a_library_that_cannot_be_loaded(tmp_path):
    """Damaged, of another system, or without one that it needs: no fault of the package."""
    for name in ("libllama.so", "libllama.dylib", "libllama.dll"):
        (tmp_path / name).write_text("nothing")
    code = "import sys; sys.argv = ['', 'doctor']; import snapkv_local.__main__ as m; m.main()"
    result = run(code, SNAPKV_LOCAL_LIB=str(tmp_path))
    assert result.returncode == 1
    assert "has a library that cannot be loaded: Failed to load shared library" in result.stderr
    assert "report" not in result.stderr


def test_llama_cpp_python_of_another_version(tmp_path):
    code = (
        "import snapkv_local.native.library as library\n"
        "library.version = lambda name: '0.3.1'\n"
        "library.prepare()"
    )
    fails_with(
        code,
        "llama-cpp-python 0.3.1: does not match",
        library.LLAMA_CPP_PYTHON,
        SNAPKV_LOCAL_LIB=fake(tmp_path),
    )


def test_llama_cpp_python_is_missing(tmp_path):
    code = (
        "import snapkv_local.native.library as library\n"
        "def version(name): raise library.PackageNotFoundError(name)\n"
        "library.version = version\n"
        "library.prepare()"
    )
    fails_with(
        code, "llama-cpp-python: is not installed; pip install", SNAPKV_LOCAL_LIB=fake(tmp_path)
    )


def test_llama_cpp_imported_with_another_library(tmp_path):
    code = (
        "import sys, types\n"
        "other = types.ModuleType('llama_cpp.llama_cpp')\n"
        "other._lib = types.SimpleNamespace(_name='/elsewhere/lib/libllama.so')\n"
        "sys.modules['llama_cpp.llama_cpp'] = other\n"
        "from snapkv_local.native import library\n"
        "library.prepare()"
    )
    fails_with(
        code,
        "llama_cpp: was imported before snapkv_local",
        "/elsewhere/lib",
        SNAPKV_LOCAL_LIB=fake(tmp_path),
    )


@pytest.mark.parametrize("name", ["LLAMA_CPP_LIB_PATH", "MTMD_CPP_LIB"])
def test_another_library_was_chosen(tmp_path, name):
    fails_with(
        "from snapkv_local.native import library; library.prepare()",
        f"{name}=/elsewhere: names another library",
        SNAPKV_LOCAL_LIB=fake(tmp_path),
        **{name: "/elsewhere"},
    )


def test_points_llama_cpp_at_the_library(tmp_path):
    code = (
        "import os; from snapkv_local.native import library; library.prepare()\n"
        "print(os.environ['LLAMA_CPP_LIB_PATH'], os.environ['MTMD_CPP_LIB'])"
    )
    result = run(code, SNAPKV_LOCAL_LIB=fake(tmp_path))
    assert result.stdout.split() == [str(tmp_path.resolve())] * 2


def test_a_process_of_ours_does_not_take_files_of_the_current_folder(tmp_path):
    for name in ("queue.py", "click.py", "snapkv_local.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong file')\n", encoding="utf-8")
    command = [*process.of_module("snapkv_local"), "--version"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
