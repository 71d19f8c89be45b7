"""The package's exceptions.

Each message has three parts: the input at fault, what is wrong with it, and what to do about it.
The second base class is what llama-cpp-python or the standard library would raise for the same
mistake, so that existing handlers keep working.
"""

from __future__ import annotations


class SnapKVError(Exception):
    """Base of all errors that snapkv_local raises.

    Args:
        subject: the input at fault, as the caller gave it ("kernel=4", a file name).
        problem: what is wrong with it.
        cure: what to do.
    """

    def __init__(self, subject: str, problem: str, cure: str) -> None:
        super().__init__(subject, problem, cure)
        self.subject = subject
        self.problem = problem
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.subject}: {self.problem}; {self.cure}"


class ConfigError(SnapKVError, ValueError):
    """Settings that contradict each other or are out of range."""


class PromptError(SnapKVError, ValueError):
    """A prompt that cannot be evaluated: empty, or longer than the context."""


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
