"""The branches for Windows of csrc/ compile, with Debian's mingw-w64. Nothing of this says that they run."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("x86_64-w64-mingw32-g++-posix") or shutil.which("x86_64-w64-mingw32-g++")
# of the system; all else is C++ and llama.cpp
SYSTEM = re.compile(r"#include <(\w+\.h|sys/.*)>|_WIN32")
STANDARD = {"<stdbool.h>", "<stddef.h>", "<stdint.h>"}

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
