"""Builds the libraries with CUDA, and the native test programs, from a clean tree.

No network is needed where SNAPKV_LLAMA_CPP_SOURCE names a llama.cpp tree of the pinned version.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NVCC = Path("/usr/local/cuda/bin/nvcc")  # where it is if it is not on the PATH

_TAIL = 40  # lines of the log that an error shows

_SHARED_CXX = "-Wl,--push-state,--no-as-needed -l:libstdc++.so.6 -Wl,--pop-state"


def build(folder: Path, compute_capability: str, log: Path, timeout: float | None) -> Path:
    """Configure and compile in a build folder; the folder of the libraries.

    Args:
        folder: of the build.
        compute_capability: of the device, such as "9.0"; the libraries run on no other.
        log: file for the output.
        timeout: seconds.

    Raises:
        RuntimeError: it fails, with the end of the log.
    """
    environment = dict(os.environ)
    if shutil.which("nvcc") is None and NVCC.exists():
        environment["CUDACXX"] = str(NVCC)
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_CUDA_ARCHITECTURES": compute_capability.replace(".", "") + "-real",
        "GGML_CUDA": "ON",
        "GGML_CUDA_NCCL": "OFF",  # one GPU
        "GGML_NATIVE": "ON",
        "SNAPKV_BUILD_TESTS": "ON",
    }
    if links_cxx_statically():
        options |= {f"CMAKE_{kind}_LINKER_FLAGS": _SHARED_CXX for kind in ("SHARED", "EXE")}
    configure = ["cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"]
    configure += [f"-D{name}={value}" for name, value in options.items()]
    compile_all = ["cmake", "--build", str(folder), "--parallel", str(os.cpu_count() or 1)]
    deadline = None if timeout is None else time.monotonic() + timeout
    with log.open("wb") as output:
        for command in (configure, compile_all):
            left = None if deadline is None else max(deadline - time.monotonic(), 1)
            try:
                result = subprocess.run(
                    command, env=environment, stdout=output, stderr=output, timeout=left
                )
            except subprocess.TimeoutExpired as e:
                raise RuntimeError(f"the build was stopped after {e.timeout:.0f} s") from e
            if result.returncode != 0:
                lines = log.read_text(errors="replace").splitlines()[-_TAIL:]
                raise RuntimeError("\n".join(["the build failed", *lines]))
    return folder / "bin"


def links_cxx_statically() -> bool:
    """Whether the compiler puts a C++ library of its own into every library that it links.

    Python's extensions bring the shared one. With both in a process, some symbols of one are bound to
    the other, and the first std::regex, which a vocabulary has, ends it.
    """
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "probe.cpp", Path(folder) / "probe.so"
        source.write_text("#include <iostream>\nvoid probe() { std::cout << 1; }\n")
        command = [*compiler, "-shared", "-fPIC", "-o", str(library), str(source)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return False  # the build will say what is wrong
        needed = library.read_bytes()  # the names of the libraries that it needs are in there
    return b"libstdc++.so" not in needed and b"libc++.so" not in needed


def is_built(lib: Path) -> bool:
    """Whether a folder has a libllama."""
    return any(lib.glob("*llama.*"))


def describe(lib: Path) -> dict[str, Any]:
    """The build as its own file tells it."""
    file = lib / "build.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return found
