"""SnapKV with recall while answering, as evaluations name it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from snapkv_local.declared import option
from snapkv_local.policies.snapkv import SnapKV


@dataclass(frozen=True)
class Recall(SnapKV):
    """SnapKV whose kept rows change with what the answer's tokens attend to. Not exact.

    Only the engine can do it, between two tokens. So it is no policy that chooses from rows that are
    there, and SnapKVConfig has it as recall=True. Pages of Quest (arXiv 2406.10774) are chosen for
    each token, and stay on the device; here rows come back from the vault, now and then.

    Attributes:
        every: tokens of the answer between two recalls.
        queries: of the last ones of these that vote.
        asked: rows of each KV head that they are compared with one by one; 0 for all.
        delay: tokens between the last of these and the rows that come in, as SnapKVConfig.recall_delay:
            what a GPU gains by it, and what the answer loses, can be measured on any device.
        margin: how many times as much as a kept row another must be worth to take its place. Most rows
            are worth about as little as the best of the others: with 1 they would change places at each
            recall, and rows that the answer's next step needs are among them.
    """

    name: ClassVar[str] = "recall"

    every: int = option(16, least=1)
    queries: int = option(4, least=1)
    asked: int = option(8192, least=0)
    delay: int | Literal["auto"] = option("auto")
    margin: float = option(2.0, least=1)

    def settings(self) -> dict[str, Any]:
        """Of SnapKVConfig."""
        return {
            **self.of_the_engine(),
            "vault": "ram",
            "recall": True,
            "recall_every": self.every,
            "recall_queries": self.queries,
            "recall_rows": self.asked,
            "recall_delay": self.delay,
            "recall_margin": self.margin,
        }
