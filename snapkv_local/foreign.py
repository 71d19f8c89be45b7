"""What llama_cpp, NumPy and the operating system raise, as errors of ours."""

from __future__ import annotations

import errno
import os
import re

from snapkv_local.errors import (
    ConfigError,
    ModelFileError,
    NativeError,
    OutOfMemoryError,
    SnapKVError,
)

LESS_MEMORY = "lower {n_ctx}, {budget}, {layer_group} or {chunk}, or free memory"

_CURES = {
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.ENOENT: "check the path",
    errno.EISDIR: "give a file",
    errno.ENOTDIR: "check the path",
    errno.EROFS: "choose another place",
    errno.ENOSPC: "free some space, or choose another place",
    errno.EDQUOT: "free some space, or choose another place",
    errno.EMFILE: "close files, or raise `ulimit -n`",
    errno.EIO: "check the disk",
}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory, address space or threads have run out, in whichever words."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    words = ("can't start new thread", "cannot allocate memory", "failed to map segment")
    said = str(error).lower()
    return isinstance(error, OSError | RuntimeError | ImportError) and any(w in said for w in words)


def says_out_of_memory(reason: str) -> bool:
    """Whether the log of llama.cpp, or the text of a C++ exception, speaks of memory."""
    return any(words in reason.lower() for words in ("memory", "failed to allocate", "bad_alloc"))


def from_system(error: OSError) -> SnapKVError:
    """An error of the operating system."""
    # what is written has no file's name: nearly always it is stdout
    subject = "output" if error.filename is None else os.fsdecode(error.filename)
    problem = error.strerror or str(error)
    problem = problem[:1].lower() + problem[1:]
    return SnapKVError(subject, problem, _CURES.get(error.errno or 0, "check it, and try again"))


def out_of_memory(subject: str, reason: str = "") -> OutOfMemoryError:
    """Memory has run out.

    Args:
        reason: in anybody's words, which may say how much was asked for.
    """
    wanted = re.search(r"[\d.]+ ?[KMGT]i?B\b", reason)
    problem = "out of memory" + (f": {wanted[0]} more are needed" if wanted else "")
    return OutOfMemoryError(subject, problem, LESS_MEMORY)


def from_load(error: Exception, path: str, reason: str) -> Exception:
    """What loading a model has raised.

    Args:
        path: of the model.
        reason: what llama.cpp's log says, or "".

    Returns:
        The error itself if it is ours, or nobody's that is known.
    """
    if isinstance(error, SnapKVError):
        return error
    if is_out_of_memory(error) or says_out_of_memory(f"{error} {reason}"):
        return out_of_memory(path, reason or str(error))
    if "Failed to load model" in str(error) or "Failed to get vocab" in str(error):
        return ModelFileError(
            path,
            "cannot be loaded" + (f": {reason}" if reason else ""),
            "check that the file is whole and that this llama.cpp knows its architecture; "
            "{verbose} says more",
        )
    if "Failed to create llama_context" in str(error):
        return NativeError(
            path, f"gets no context{': ' if reason else ''}{reason}", "{verbose} says more"
        )
    return error


def from_chat_format(name: str, known: list[str]) -> ConfigError:
    """A chat format that llama_cpp does not know."""
    return ConfigError(
        f"chat_format={name}", "is no chat format", f"give one of {', '.join(sorted(known))}"
    )
