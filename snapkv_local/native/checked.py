"""A llama_cpp context that says why it fails, and does not end the process where memory runs out."""

from __future__ import annotations

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local.native import api  # isort: skip

from llama_cpp import _internals

from snapkv_local.native import voices


class CheckedContext(_internals.LlamaContext):
    """llama_cpp's context with the full cache."""

    def decode(self, batch: _internals.LlamaBatch) -> None:
        """Evaluate a batch.

        Raises:
            OutOfMemoryError, NativeError: what the context holds is then unknown.
        """
        with voices.heard(silent=not self.verbose) as said:
            rc = api.llama_snapkv_decode(self.ctx, batch.batch)
        if rc != 0:
            api.fail("a batch of tokens", said.reason)
