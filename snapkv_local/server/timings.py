"""How long an answer took, in llama-server's form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Timings:
    """Of one answer, or of some together.

    Attributes:
        n_cached: tokens of prompts that were there.
        n_prompt: tokens of prompts that were evaluated.
        prompt: seconds until the first token was drawn.
        n_predicted: tokens of answers.
        predicted: seconds from the first token to the last.
        n_drafted, n_accepted: guessed tokens that were looked at, and those that answers have.
        n_looks, n_again: batches that had some, and tokens that were evaluated again for them.
    """

    n_cached: int = 0
    n_prompt: int = 0
    prompt: float = 0.0
    n_predicted: int = 0
    predicted: float = 0.0
    n_drafted: int = 0
    n_accepted: int = 0
    n_looks: int = 0
    n_again: int = 0

    def __add__(self, other: Timings) -> Timings:
        return Timings(
            self.n_cached + other.n_cached,
            self.n_prompt + other.n_prompt,
            self.prompt + other.prompt,
            self.n_predicted + other.n_predicted,
            self.predicted + other.predicted,
            self.n_drafted + other.n_drafted,
            self.n_accepted + other.n_accepted,
            self.n_looks + other.n_looks,
            self.n_again + other.n_again,
        )

    def json(self) -> dict[str, Any]:
        """As llama-server has it."""
        found: dict[str, Any] = {"cache_n": self.n_cached}
        for name, n, seconds in (
            ("prompt", self.n_prompt, self.prompt),
            ("predicted", self.n_predicted, self.predicted),
        ):
            found |= {
                f"{name}_n": n,
                f"{name}_ms": seconds * 1000,
                f"{name}_per_token_ms": seconds * 1000 / n if n else 0.0,
                f"{name}_per_second": n / seconds if seconds else 0.0,
            }
        if self.n_drafted:
            found |= {"draft_n": self.n_drafted, "draft_n_accepted": self.n_accepted}
            found |= {"draft_n_looks": self.n_looks, "draft_n_again": self.n_again}
        return found
