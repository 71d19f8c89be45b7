"""What llama_cpp, NumPy and the operating system raise, as errors of ours."""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING

from snapkv_local import memory
from snapkv_local.errors import (
    ConfigError,
    ModelFileError,
    NativeError,
    OutOfMemoryError,
    SnapKVError,
)

if TYPE_CHECKING:
    import llama_cpp


def less_memory() -> str:
    """What to do where memory has run out."""
    cure = "lower {n_ctx}, {budget}, {layer_group} or {n_ubatch}, or free memory"
    return cure if memory.left() is None else f"{cure}, or raise this process's `ulimit -v`"


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
    """Whether the log of llama.cpp, or the text of a C++ exception, says so."""
    words = ("out of memory", "insufficient memory", "allocate memory", "to allocate", "bad_alloc")
    return any(w in reason.lower() for w in words)


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
    problem = "out of memory" + (f": {wanted[0]} more is needed" if wanted else "")
    return OutOfMemoryError(subject, problem, less_memory())


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
            path, f"no context can be made{': ' if reason else ''}{reason}", "{verbose} says more"
        )
    return error


def check_adapter(llm: llama_cpp.Llama, reason: str) -> None:
    """Refuse a LoRA adapter that llama_cpp takes although it is none, or could not be applied.

    Args:
        reason: as for from_load().

    Raises:
        ModelFileError: it is not an adapter of this model, or acts behind certain tokens only.
    """
    import llama_cpp

    if not llm.lora_path:
        return
    # llama_cpp takes a null pointer for an adapter
    if not llm._lora_adapter:
        raise ModelFileError(
            str(llm.lora_path),
            "is not a LoRA adapter of this model" + (f": {reason}" if reason else ""),
            "give a GGUF file that convert_lora_to_gguf.py has made for it; {verbose} says more",
        )
    # it would act on the whole prompt
    if llama_cpp.llama_adapter_get_alora_n_invocation_tokens(llm._lora_adapter):
        raise ModelFileError(
            str(llm.lora_path),
            "is an activated LoRA adapter (aLoRA), which acts behind certain tokens only",
            "give one that acts on all tokens",
        )


def from_chat_format(llm: llama_cpp.Llama) -> ConfigError:
    """Of a chat format that is neither the model's nor one of llama_cpp's."""
    return ConfigError(
        f"chat_format={llm.chat_format}",
        "is not a chat format",
        f"give one of {', '.join(sorted(chat_formats(llm)))}",
    )


def chat_formats(llm: llama_cpp.Llama) -> list[str]:
    """Names that chat_format may have: templates in the model's file, and llama_cpp's own."""
    from llama_cpp.llama_chat_format import LlamaChatCompletionHandlerRegistry

    return [*llm._chat_handlers, *LlamaChatCompletionHandlerRegistry()._chat_handlers]
