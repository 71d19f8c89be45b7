"""The native library, and how its functions are bound. Importing this module loads it."""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

from snapkv_local import foreign
from snapkv_local.errors import LibraryError
from snapkv_local.native import library

LIB_DIR = library.prepare()

# only now: importing llama_cpp loads the library that prepare() has chosen
try:
    from llama_cpp import llama_cpp
except RuntimeError as e:
    if foreign.is_out_of_memory(e):
        raise
    raise library.unloadable(LIB_DIR, e) from e
from llama_cpp._ctypes_extensions import (  # noqa: E402
    ctypes_function_for_shared_library,
    load_shared_library,
)


def _libraries() -> list[ctypes.CDLL]:
    """Those that functions are found through.

    libllama depends on ggml's libraries, and finds what they have: loaded by a name of its own, one might be
    a second copy. A DLL finds what it has itself, and nothing else; but of a path there is one copy.
    """
    if sys.platform != "win32":
        return [llama_cpp._lib]
    return [*(load_shared_library(name, LIB_DIR) for name in ("ggml", "ggml-base")), llama_cpp._lib]


_libs = _libraries()


def function(name: str, argtypes: list[Any], restype: Any) -> Any:
    """A decorator for the declaration of a function of llama.cpp, ours or ggml's.

    Raises:
        LibraryError: the library has none of this name.
    """
    found = [lib for lib in _libs if hasattr(lib, name)]
    if not found:
        raise LibraryError(
            str(LIB_DIR),
            f"holds a llama.cpp without {name}(): unpatched, or of another version of this package",
            "build ours with `make build` or `pip install .`",
        )
    return ctypes_function_for_shared_library(found[0])(name, argtypes, restype)


def build() -> dict[str, Any]:
    """How the library was built, which a file beside it says; {} if there is none."""
    file = LIB_DIR / "build.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}
