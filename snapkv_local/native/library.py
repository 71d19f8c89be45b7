"""Finds our native library and points llama_cpp at it, before llama_cpp is imported.

llama-cpp-python is used for its Python code only. It loads its library on import, from the folder
that LLAMA_CPP_LIB_PATH names, and its ctypes declarations match one llama.cpp commit: the one our
library is built from.
"""

from __future__ import annotations

import importlib.resources
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from snapkv_local.errors import LibraryError

LLAMA_CPP_PYTHON = "0.3.36"

ENV_LIB = "SNAPKV_LOCAL_LIB"
# 1: try devices on which nobody has proven the results, if a small model is exact there; 2: even if not
ENV_UNPROVEN = "SNAPKV_UNPROVEN"
ENV_LLAMA_CPP = "LLAMA_CPP_LIB_PATH"
ENV_MTMD = "MTMD_CPP_LIB"

INSTALL = f'pip install --config-settings=wheel.cmake=false "llama-cpp-python=={LLAMA_CPP_PYTHON}"'


def prepare() -> Path:
    """Make `import llama_cpp` load our library.

    Returns:
        The library's folder.

    Raises:
        LibraryError: our library is missing; llama-cpp-python is missing or of another version; or
            another library was chosen for it already.
    """
    folder = find()
    check_version()
    loaded = loaded_from()
    if loaded is not None:
        if loaded != folder:
            raise LibraryError(
                "llama_cpp",
                f"was imported before snapkv_local and has loaded its library from {loaded}",
                "import snapkv_local.Llama before llama_cpp, and in a new process",
            )
        return folder
    for name in (ENV_LLAMA_CPP, ENV_MTMD):
        value = os.environ.get(name)
        if value is not None and Path(value).resolve() != folder:
            raise LibraryError(
                f"{name}={value}",
                f"names another library than {folder}",
                f"unset it; {ENV_LIB} is the variable for another build of ours",
            )
        # left in place: llama_cpp.mtmd_cpp reads it when the first multimodal chat handler is made
        os.environ[name] = str(folder)
    return folder


def find() -> Path:
    """The folder of our libraries: that of SNAPKV_LOCAL_LIB, else the installed package's.

    Raises:
        LibraryError: libllama is not there.
    """
    chosen = os.environ.get(ENV_LIB)
    # an editable install keeps lib/ in another folder than the Python files, so __file__ would not
    # find it
    package = importlib.resources.files("snapkv_local").joinpath("lib")
    folder = Path(chosen).resolve() if chosen is not None else Path(str(package)).resolve()
    if not any(folder.glob("*llama.*")):
        raise LibraryError(
            f"{ENV_LIB}={chosen}" if chosen is not None else str(folder),
            "has no llama library",
            f"name the folder that holds libllama in {ENV_LIB}"
            if chosen is not None
            else "build and install the package with `make build` or `pip install .`",
        )
    return folder


def check_version() -> None:
    """Refuse any llama-cpp-python but the one whose declarations match our library.

    Raises:
        LibraryError: missing, or of another version.
    """
    try:
        installed = version("llama-cpp-python")
    except PackageNotFoundError:
        raise LibraryError("llama-cpp-python", "is not installed", INSTALL) from None
    if installed != LLAMA_CPP_PYTHON:
        raise LibraryError(
            f"llama-cpp-python {installed}",
            f"does not match our library, which is built for version {LLAMA_CPP_PYTHON}",
            INSTALL,
        )


def loaded_from() -> Path | None:
    """The folder that llama_cpp has loaded its library from, None if it is not imported."""
    module = sys.modules.get("llama_cpp.llama_cpp")
    return None if module is None else Path(module._lib._name).resolve().parent


def unloadable(folder: Path, error: RuntimeError) -> LibraryError:
    """The error for a library that the system does not load; Windows does not say which one it misses."""
    return LibraryError(
        str(folder),
        f"has a library that cannot be loaded: {error}",
        "install what it needs, such as the CUDA toolkit or the GPU's driver, or build it again on this "
        "machine with `make build` or `pip install .`",
    )
