"""SnapKV for llama.cpp: long prompts in a small KV cache.

Importing the package loads no native code; the first use of Llama or Document does.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from snapkv_local import errors
from snapkv_local.config import SnapKVConfig
from snapkv_local.errors import SnapKVError
from snapkv_local.reading import read_text
from snapkv_local.stats import PrefillStats

if TYPE_CHECKING:
    from snapkv_local.document import Document
    from snapkv_local.llama import Llama

__all__ = [
    "Document",
    "Llama",
    "PrefillStats",
    "SnapKVConfig",
    "SnapKVError",
    "__version__",
    "errors",
    "read_text",
]


def __getattr__(name: str) -> Any:
    if name in ("Llama", "Document"):
        # first of all: it loads our library, which llama_cpp then uses
        from snapkv_local.llama import Llama  # isort: skip
        from snapkv_local.document import Document

        return Llama if name == "Llama" else Document
    if name == "__version__":
        return version("snapkv-local")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
