"""What the engine asks of macOS is compiled, with declarations as macOS has them; it never ran there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("g++")
# of macOS's <fcntl.h>; what it has not must not be asked for
MACOS = """
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/types.h>
struct fstore_t { unsigned fst_flags; int fst_posmode; off_t fst_offset, fst_length, fst_bytesalloc; };
#define F_ALLOCATEALL 4
#define F_PEOFPOSMODE 3
#define F_PREALLOCATE 42
#undef MADV_HUGEPAGE
#undef O_TMPFILE
#pragma GCC poison posix_fallocate fallocate MADV_HUGEPAGE mremap O_TMPFILE memfd_create
"""

pytestmark = pytest.mark.native


def sources() -> list[Path]:
    """Those that ask the system for something."""
    return [
        path
        for path in sorted((ROOT / "csrc").glob("*/*.cpp"))
        if re.search(
            r"#include <(unistd|fcntl|sys/\w+)\.h>|__APPLE__", path.read_text(encoding="utf-8")
        )
        and not path.is_relative_to(ROOT / "csrc/tests")
    ]


@pytest.mark.skipif(COMPILER is None, reason="no g++ on this machine")
@pytest.mark.parametrize("path", sources(), ids=lambda path: path.name)
def test_it_compiles_for_macos(path: Path, binaries: Path, tmp_path: Path) -> None:
    header = tmp_path / "macos.h"
    header.write_text(MACOS)
    staged = binaries.parent / "llama.cpp"
    command = [
        *(COMPILER, "-std=c++17", "-fsyntax-only", "-Wall", "-Werror", "-include", header),
        *("-U__linux__", "-D__APPLE__", "-I", ROOT / "csrc", "-I", ROOT / "csrc/upstream"),
        *("-I", staged / "include", "-I", staged / "src"),
        *("-I", staged / "ggml/include", "-I", staged / "ggml/src", path),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    if path.name == "memory.cpp":  # without the branch for it, it would not be
        command.remove("-D__APPLE__")
        result = subprocess.run(command, capture_output=True, text=True)
        assert "posix_fallocate" in result.stderr
