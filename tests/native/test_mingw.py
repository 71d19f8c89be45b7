"""The engine for Windows, compiled on Linux with mingw-w64 and run with wine, which is not Windows.

`make test.mingw` builds it and runs these tests; without it, only the compiler is asked whether it takes
the branches for Windows.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import pe
from repair_wheel import WINDOWS
from snapkv_local.models.resolve import needle_model

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("x86_64-w64-mingw32-g++-posix") or shutil.which("x86_64-w64-mingw32-g++")
# of the system; all else is C++, llama.cpp and the compiler's own
SYSTEM = re.compile(r"#include <((?!immintrin)\w+\.h|sys/.*)>|_WIN32")

pytestmark = pytest.mark.native


def sources() -> list[Path]:
    """Sources of the engine that ask the system for something."""
    return [
        path
        for path in sorted((ROOT / "csrc").glob("*/*.cpp"))
        if path.parent.name != "tests" and SYSTEM.search(path.read_text(encoding="utf-8"))
    ]


def test_what_asks_the_system_has_a_branch_for_windows() -> None:
    names = {path.name for path in sources()}
    assert {"border.cpp", "alloc.cpp", "memory.cpp"} <= names
    for path in sources():
        if not path.is_relative_to(ROOT / "csrc/ops"):
            assert "_WIN32" in path.read_text(encoding="utf-8"), path


@pytest.mark.skipif(COMPILER is None, reason="no mingw-w64 on this machine (g++-mingw-w64-x86-64)")
@pytest.mark.parametrize("path", sources(), ids=lambda path: path.name)
def test_it_compiles_for_windows(path: Path, binaries: Path) -> None:
    staged = binaries.parent / "llama.cpp"
    command = [
        *(COMPILER, "-std=c++17", "-fsyntax-only", "-Wall", "-D_WIN32_WINNT=0x0A00"),
        *("-I", ROOT / "csrc", "-I", ROOT / "csrc/upstream"),
        *("-I", staged / "include", "-I", staged / "src"),
        *("-I", staged / "ggml/include", "-I", staged / "ggml/src", path),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]


def bound(module: str) -> set[str]:
    """Functions that a module of snapkv_local/native declares."""
    text = (ROOT / "snapkv_local/native" / f"{module}.py").read_text(encoding="utf-8")
    return set(re.findall(r'@function\(\s*"(\w+)"', text))


def test_what_python_calls_is_marked_for_export() -> None:
    """Microsoft's linker exports nothing else."""
    header = (ROOT / "csrc/snapkv.h").read_text(encoding="utf-8")
    marked = set(re.findall(r"\bLLAMA_API [^;(]*?(\w+)\(", header))
    assert len(marked) > 40
    assert bound("api") <= marked


@pytest.fixture(scope="session")
def windows() -> Path:
    """The folder with DLLs and programs for Windows."""
    folder = os.environ.get("SNAPKV_MINGW")
    if folder is None:
        pytest.skip("run by `make test.mingw`, which builds it")
    return Path(folder).resolve()


def test_the_libraries_export_what_python_calls(windows: Path) -> None:
    """On Windows a function is looked up in one library, and not in those that it depends on."""
    llama = pe.exports(windows / "libllama.dll")
    assert bound("api") <= llama
    bindings = Path(str(importlib.util.find_spec("llama_cpp").origin)).with_name("llama_cpp.py")
    upstream = set(
        re.findall(r'@ctypes_function\(\s*"(\w+)"', bindings.read_text(encoding="utf-8"))
    )
    assert len(upstream) > 150
    assert upstream <= llama
    ggml = [pe.exports(windows / f"{name}.dll") for name in ("ggml", "ggml-base")]
    assert len(bound("devices")) > 5
    assert bound("devices") <= ggml[0] | ggml[1]


def test_the_libraries_need_nothing_that_windows_lacks(windows: Path) -> None:
    """But each other, in the folder that the package loads them from."""
    dlls = {path.name.lower(): path for path in windows.glob("*.dll")}
    assert {"libllama.dll", "ggml-cpu.dll", "libgomp-1.dll"} <= dlls.keys()
    for name, path in dlls.items():
        needed = pe.imports(name, path.read_bytes()) - dlls.keys()
        assert all(WINDOWS.fullmatch(dll.removesuffix(".dll")) for dll in needed), (name, needed)


@pytest.fixture(scope="session")
def wine(windows: Path) -> dict[str, str]:
    """An environment that wine runs in; its own files are in the build folder."""
    if shutil.which("wine") is None:
        pytest.skip("no wine on this machine")
    (windows.parent / "wine").mkdir(exist_ok=True)
    environment = {**os.environ, "WINEPREFIX": str(windows.parent / "wine"), "WINEDEBUG": "-all"}
    # made before its first program runs, which would wait for it within its own time
    subprocess.run(["wineboot", "-i"], env=environment, capture_output=True, check=True)
    return environment


def run(windows: Path, environment: dict[str, str], name: str, *args: object) -> str:
    command = ["wine", str(windows / f"{name}.exe"), *map(str, args)]
    result = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert result.returncode == 0, f"{result.stdout}{result.stderr}"
    return result.stdout.strip()


def test_fused_ops(windows: Path, wine: dict[str, str]) -> None:
    assert run(windows, wine, "test-snapkv-select") == "OK"
    assert run(windows, wine, "test-snapkv-ops", "--quick").splitlines()[-1].startswith("OK")


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_prefills_are_exact(
    windows: Path, wine: dict[str, str], arch_models: Path, kv_type: str
) -> None:
    """Of each architecture that is supported, and of a real model."""
    models = [*sorted(arch_models.glob("*.gguf")), needle_model()]
    options = ["-n", "101", "-u", "50", "-g", "1,2,0", "-s", "2", "-t", kv_type]
    lines = run(windows, wine, "test-snapkv-exact", *options, *models).splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) == len(models)
    supported = [record for record in records if record["supported"]]
    assert len(supported) > len(models) / 2
    assert [record for record in supported if not record["exact"]] == []


@pytest.mark.parametrize(
    ("name", "archs"),
    [
        ("cache", ["llama-dense", "gemma3-dense", "deepseek2-moe"]),
        ("hybrid", ["qwen35-dense", "lfm2-dense"]),
        ("interleave", ["llama-dense", "gemma3-dense", "qwen35-dense"]),
        ("parallel", ["llama-dense", "qwen35-dense"]),
        ("overlap", []),
        ("recall", ["llama-dense", "gemma3-dense"]),
        ("recall-bounds", ["llama-dense"]),
        ("selective", ["llama-dense"]),
        ("shared", ["gemma4-shared-dense"]),
        ("devices", ["llama-dense"]),
    ],
)
def test_programs(
    windows: Path, wine: dict[str, str], arch_models: Path, name: str, archs: list[str]
) -> None:
    models = [arch_models / f"{arch}.gguf" for arch in archs]
    assert run(windows, wine, f"test-snapkv-{name}", *models).endswith("OK")
