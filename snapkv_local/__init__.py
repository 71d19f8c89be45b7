"""SnapKV for llama.cpp: long prompts in a small KV cache.

Importing the package loads neither NumPy nor native code; the first use of what it names does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from snapkv_local import errors
from snapkv_local.errors import SnapKVError

if TYPE_CHECKING:
    from snapkv_local.config import SnapKVConfig
    from snapkv_local.llama.drafting import ModelDraft, PromptLookup
    from snapkv_local.llama.heads import HeadDraft
    from snapkv_local.llama.llama import Llama
    from snapkv_local.reading.text import read_text
    from snapkv_local.stats import PrefillStats
    from snapkv_local.storage.document import Document

__all__ = [
    "Document",
    "HeadDraft",
    "Llama",
    "ModelDraft",
    "PrefillStats",
    "PromptLookup",
    "SnapKVConfig",
    "SnapKVError",
    "__version__",
    "errors",
    "read_text",
]

_HOMES = {
    "Document": "storage.document",
    "HeadDraft": "llama.heads",
    "Llama": "llama.llama",
    "ModelDraft": "llama.drafting",
    "PrefillStats": "stats",
    "PromptLookup": "llama.drafting",
    "SnapKVConfig": "config",
    "read_text": "reading.text",
}


def __getattr__(name: str) -> Any:
    if name in ("Document", "HeadDraft", "ModelDraft", "PromptLookup"):
        # first of all: it loads our library, which llama_cpp then uses
        import_module("snapkv_local.llama.llama")
    if name in _HOMES:
        return getattr(import_module(f"snapkv_local.{_HOMES[name]}"), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("snapkv-local")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
