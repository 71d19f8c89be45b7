"""The package's exceptions.

Each message has three parts: the input at fault, what is wrong with it, and what to do about it.
The second base class is what llama-cpp-python or the standard library would raise for the same
mistake, so that existing handlers keep working.

What to do has another name at each door: n_ctx in Python is --ctx on the command line. A cure names
arguments in braces, "raise {n_ctx}" or "give {n_ctx=4096}", and says() puts in what the reader can turn.
"""

from __future__ import annotations

import re
from typing import Literal

Door = Literal["python", "cli", "server"]

_NAMES: dict[Door, dict[str, str]] = {
    "python": {
        "verbose": "verbose=True",
        "no_mmap": "use_mmap=False",
        "full": "snapkv=None",
        "vault": 'SnapKVConfig(vault="ram")',
    },
    "cli": {
        "full": "--full",
        "vault": "--vault ram",
    },
    "server": {
        "n_ctx": "the server's --ctx",
        "decode_cells": "the server's --decode-cells",
        "verbose": "the server's --verbose",
        "no_mmap": "the server's --no-mmap",
        "full": "the server's --full",
        "vault": "the server's --vault ram",
    },
}

# options that are not called as their argument, less an n_ at its start
_OPTIONS = {"n_sink": "--n-sink", "n_ubatch": "--ubatch-size"}


def option_of(argument: str) -> str:
    """The command line's option for an argument of Llama or SnapKVConfig."""
    return _OPTIONS.get(argument, "--" + argument.removeprefix("n_").replace("_", "-"))


class SnapKVError(Exception):
    """Base of all errors that snapkv_local raises.

    Args:
        subject: the input at fault, as the caller gave it ("kernel_size=4", a file name).
        problem: what is wrong with it.
        cure: what to do, with arguments of Llama and SnapKVConfig in braces.
    """

    def __init__(self, subject: str, problem: str, cure: str) -> None:
        super().__init__(subject, problem, cure)
        self.subject = subject
        self.problem = problem
        self.cure = cure

    def __str__(self) -> str:
        return self.says("python")

    def says(self, door: Door) -> str:
        """The message, with names that a reader at this door knows."""
        subject = self.subject
        given = re.fullmatch(r"([a-z][a-z_]*)=(.*)", subject, re.DOTALL)
        if door == "cli" and given is not None:
            subject = f"{option_of(given[1])} {given[2]}"
        cure = re.sub(
            r"\{([a-z_]+)(?:=([^}]+))?\}", lambda found: _name(found[1], found[2], door), self.cure
        )
        return f"{subject}: {self.problem}; {cure}"


def _name(argument: str, value: str | None, door: Door) -> str:
    if value is not None:
        if door == "cli":
            return " ".join([option_of(argument), value.strip("'")])
        return f"{argument}={value}"
    ordinary = argument if door == "python" else option_of(argument)
    return _NAMES[door].get(argument, ordinary)


class ConfigError(SnapKVError, ValueError):
    """Settings that contradict each other or are out of range."""


class PromptError(SnapKVError, ValueError):
    """A prompt that cannot be evaluated: empty, or longer than the context."""


class LongPromptError(PromptError):
    """A prompt that is longer than the context.

    Attributes:
        n_tokens: of the prompt.
        n_ctx: that the context has.
    """

    def __init__(self, subject: str, problem: str, n_tokens: int, n_ctx: int) -> None:
        super().__init__(subject, problem, "raise {n_ctx} or shorten the prompt")
        self.n_tokens = n_tokens
        self.n_ctx = n_ctx


class ConversationError(PromptError):
    """Messages that no answer can follow, or that the chat format cannot write."""


class ModelFileError(SnapKVError, ValueError):
    """A model file that is missing, truncated or not GGUF."""


class UnsupportedModelError(SnapKVError, ValueError):
    """A model or context that the engine refuses, with its reason."""


class DocumentError(SnapKVError, ValueError):
    """A file of ours that cannot be read, written or used: another kind, damaged, of another model."""


class TextFileError(SnapKVError, ValueError):
    """A file, or stdin, that gives no text: it is of another kind, damaged or empty."""


class GrammarError(SnapKVError, ValueError):
    """A JSON schema or a grammar that answers cannot be held to."""


class LibraryError(SnapKVError, ImportError):
    """The native library or llama-cpp-python is missing or does not fit."""


class NoRoomError(SnapKVError, RuntimeError):
    """Tokens that do not fit the free cells of the KV cache."""


class OutOfMemoryError(SnapKVError, MemoryError):
    """An allocation that failed in the native library. The context stays usable, and is empty."""


class NativeError(SnapKVError, RuntimeError):
    """Any other failure of the native library."""
