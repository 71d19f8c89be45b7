"""KVzip: the rows that it takes to say the prompt once more, whatever will be asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from snapkv_local.declared import option
from snapkv_local.errors import ConfigError
from snapkv_local.policies.ranked import Ranked
from snapkv_local.policies.rows import Scores, n_prefix
from snapkv_local.policies.scoring import votes
from snapkv_local.policies.view import LayerView, PromptView


@dataclass(frozen=True)
class Replay(Ranked):
    """The most attention that a row gets from any token while the prompt is said once more.

    Kim et al., "KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction", arXiv
    2505.23416, section 3. The prompt's tokens are evaluated a second time behind it, and each row has
    the largest attention of all of these queries, over all query heads of its KV head. No question is
    looked at. The paper asks in words for the text and repeats it in parts of 2,000 tokens; here the
    tokens follow the prompt as they are, all at once. It gives the heads of a layer different numbers
    of rows; here they have equally many, and `level` shares rows out over layers.

    Attributes:
        n_sink: first positions that always stay.
    """

    name: ClassVar[str] = "replay"
    source: ClassVar[str] = "arXiv 2505.23416, section 3"

    n_sink: int = option(4)

    def repeats(self) -> bool:
        """Yes."""
        return True

    def n_observed(self, prompt: PromptView) -> int:
        """None: those who vote come after the prompt."""
        return 0

    def score(self, layer: LayerView, prompt: PromptView) -> Scores:
        """The largest attention of any query."""
        again = layer.again
        if again is None:
            raise ConfigError(
                f"policy {self.name}",
                "needs the prompt once more, and a prefill evaluates it once",
                "keep rows with Llama.keep_for_later(), or measure it with `snapkv-local eval`",
            )
        n, n_again = prompt.n_prompt, again.k.shape[1]
        joined = replace(layer, q=again.q, k=np.concatenate([layer.k, again.k], axis=1))
        found = votes(joined, n, n + n_again, n_prefix(prompt), "max")
        best: Scores = found.reshape(len(layer.k), -1, n_prefix(prompt)).max(axis=1)
        return best
