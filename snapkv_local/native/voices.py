"""What llama.cpp says in its log: kept for errors, and shown to those who ask for it.

llama_cpp prints some of it, whatever `verbose` is, and the exception that follows knows nothing of
it. Here the lines become the reason in the exception.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llama_cpp import _logger, llama_cpp

from snapkv_local import process

# enum ggml_log_level
_INFO, _ERROR, _CONTINUED = 2, 4, 5


class Said:
    """What llama.cpp has said on this thread.

    Attributes:
        errors: text at ggml's level "error"; a line may be in several pieces.
    """

    def __init__(self, silent: bool) -> None:
        self.silent = silent
        self.errors: list[str] = []

    @property
    def reason(self) -> str:
        """The first error, which is the closest to the cause; "" if there was none."""
        for line in "".join(self.errors).splitlines():
            # the names of functions before it say nothing to a reader
            says = re.sub(r"^(\w+: )+", "", line.strip())
            if says:
                return says.removeprefix("error loading model: ")
        return ""


_listening = threading.local()
_level = 0  # of the last line, for pieces that go on with it


@contextmanager
def heard(silent: bool = True) -> Iterator[Said]:
    """While open, what llama.cpp says on this thread is kept.

    Args:
        silent: nobody else gets to read it.
    """
    stack: list[Said] = _listening.__dict__.setdefault("stack", [])
    stack.append(Said(silent))
    try:
        yield stack[-1]
    finally:
        stack.pop()


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _on_log(level: int, text: bytes, user_data: Any) -> None:
    global _level
    _level = _level if level == _CONTINUED else level
    stack: list[Said] = getattr(_listening, "stack", [])
    if _level == _ERROR:
        for said in stack:
            said.errors.append(text.decode("utf-8", errors="replace"))
    if process.log is not None:
        if _level >= _INFO:
            os.write(process.log, text)
    elif not process.is_own and not any(said.silent for said in stack):
        _logger.llama_log_callback(level, text, user_data)


# in the place of llama_cpp's own, which it calls for everybody else
llama_cpp.llama_log_set(_on_log, None)
