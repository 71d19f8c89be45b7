"""SnapKV for llama.cpp: long prompts in a small KV cache.

Importing the package loads no native code; the first use of Llama does.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from snapkv_local import errors
from snapkv_local.config import SnapKVConfig
from snapkv_local.errors import SnapKVError
from snapkv_local.stats import PrefillStats

if TYPE_CHECKING:
    from snapkv_local.llama import Llama

__all__ = ["Llama", "PrefillStats", "SnapKVConfig", "SnapKVError", "__version__", "errors"]


def __getattr__(name: str) -> Any:
    if name == "Llama":
        from snapkv_local.llama import Llama

        return Llama
    if name == "__version__":
        return version("snapkv-local")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
