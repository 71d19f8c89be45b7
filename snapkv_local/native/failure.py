"""What a llama_snapkv_ function says when it fails, as an error of ours."""

from __future__ import annotations

from typing import NoReturn

from snapkv_local import foreign
from snapkv_local.errors import NativeError, OutOfMemoryError
from snapkv_local.native import api


def fail(what: str, said: str = "") -> NoReturn:
    """Raise the reason of this thread's last failure in a llama_snapkv_ function.

    Args:
        what: failed: the function, or what it was to do.
        said: what llama.cpp has logged about it, or "".
    """
    reason = last_error()
    if foreign.says_out_of_memory(reason):
        raise OutOfMemoryError(what, reason, foreign.less_memory())
    if foreign.says_out_of_memory(said):
        raise foreign.out_of_memory(what, said)
    if said and said not in reason:
        reason = f"{reason} ({said})"
    raise NativeError(what, reason, "llama.cpp's log ({verbose}) may say more")


def last_error() -> str:
    """The reason of this thread's last failure in a llama_snapkv_ function; "" if none."""
    return str(api.llama_snapkv_last_error(), "utf-8", errors="replace")


def last_warning() -> str:
    """What this thread's last check of a model that ended well warns of; "" if nothing."""
    return str(api.llama_snapkv_last_warning(), "utf-8", errors="replace")
