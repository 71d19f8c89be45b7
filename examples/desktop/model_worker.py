"""A model on a thread of its own: Qt signals in, Qt signals out."""

from __future__ import annotations

import threading
from typing import Any

from PySide6.QtCore import QObject, Signal, Slot

from snapkv_local import Llama, SnapKVConfig
from snapkv_local.models.resolve import resolve


class Cancelled(Exception):
    """Raised in the progress function, which ends the prefill."""


class ModelWorker(QObject):
    """Loads a model and answers questions. Move it to a QThread, and call its slots by signals.

    Each request ends with exactly one of loaded, answered, cancelled and failed.

    Args:
        budget: rows of the KV cache kept for each head, in tokens.
        options: other arguments of Llama.
    """

    loaded = Signal(str)  # name of the model
    progressed = Signal(int, int)  # prefill: done, of this many
    said = Signal(str)  # a piece of the answer
    answered = Signal(object)  # PrefillStats; None for a short prompt, which is kept whole
    cancelled = Signal()
    failed = Signal(str)

    def __init__(self, budget: int, **options: Any) -> None:
        super().__init__()
        self.budget = budget
        self.options = {"n_ctx": 0, "n_gpu_layers": -1, "verbose": False, **options}
        self.llm: Llama | None = None
        # set by the window's thread: signals do not reach this one while a slot runs
        self.stop = threading.Event()

    @Slot(str)
    def load(self, model: str) -> None:
        """Load a GGUF file, `demo`, or hf:owner/repo, after freeing what was loaded."""
        try:
            self.close()  # first of all: memory may not hold two
            path = resolve(model)
            self.llm = Llama(
                str(path),
                snapkv=SnapKVConfig(budget=self.budget),
                prefill_progress=self._on_progress,
                **self.options,
            )
        except Exception as e:  # whatever it is, the person has to see it
            self.failed.emit(str(e))
        else:
            self.loaded.emit(self.llm.metadata.get("general.name", path.name))

    @Slot(str, str)
    def ask(self, document: str, question: str) -> None:
        """Answer a question about a document.

        The question comes last: what the cache keeps is chosen for the end of the prompt.
        """
        try:
            # else the same question, asked again, goes on from its last token
            self.llm.reset()
            message = {"role": "user", "content": f"{document}\n\n{question}"}
            for chunk in self.llm.create_chat_completion([message], temperature=0.0, stream=True):
                if self.stop.is_set():
                    raise Cancelled
                if text := chunk["choices"][0]["delta"].get("content"):
                    self.said.emit(text)
        except Cancelled:
            self.cancelled.emit()
        except Exception as e:
            self.failed.emit(str(e))
        else:
            self.answered.emit(self.llm.last_prefill)

    def _on_progress(self, done: int, total: int) -> None:
        if self.stop.is_set():
            raise Cancelled
        self.progressed.emit(done, total)

    def close(self) -> None:
        """Free the model."""
        if self.llm is not None:
            self.llm.close()
            self.llm = None
