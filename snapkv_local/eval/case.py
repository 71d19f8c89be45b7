"""One thing to predict from a compressed prompt, in tokens."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

Span = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """A prompt that is compressed, and what comes after it.

    Attributes:
        id: task, length, document and question; no other case has it.
        task: its name.
        document: id of the document, which several cases may share; intervals are over documents.
        length: of the prompt that was asked for, in tokens; None for a prompt that is taken as it
            is.
        prompt: [n_prompt] tokens, whose cache is compressed.
        after: [at least 1] tokens that are fed to the compressed cache and not scored. The logits
            of the prompt's last token come from full attention, those of the last of these do not.
        gold: [at least 1] tokens that are scored.
        system: [begin, end) of what stands before the user's text: the system prompt and the
            template's own words.
        question: [begin, end) of the question's own words in the prompt; None if it has none.
        sentences: first position of each sentence, ascending, 0 the first.
        depth: where in the document the answer stands, in [0, 1]; None if not at one place.
    """

    id: str
    task: str
    document: str
    length: int | None
    prompt: tuple[int, ...]
    after: tuple[int, ...]
    gold: tuple[int, ...]
    system: Span = (0, 0)
    question: Span | None = None
    sentences: tuple[int, ...] = (0,)
    depth: float | None = None

    @property
    def n_after(self) -> int:
        """Cells that it needs after the prompt. The last gold token is predicted and not fed."""
        return len(self.after) + len(self.gold) - 1

    @property
    def n_repeated(self) -> int:
        """Tokens that are evaluated once more for a policy that repeats the prompt."""
        return len(self.prompt) - self.system[1]

    def digest(self) -> str:
        """Says whether a case of the same id is the same."""
        parts = (self.prompt, self.after, self.gold)
        data = b"".join(np.asarray([len(p), *p], dtype="<i8").tobytes() for p in parts)
        return hashlib.sha256(data).hexdigest()[:16]
