"""H2O: the rows that all queries of the prompt together attend to, and recent ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from snapkv_local.declared import option
from snapkv_local.policies.ranked import Ranked
from snapkv_local.policies.rows import Ids, Scores, best, check_n_rows, n_prefix
from snapkv_local.policies.scoring import group_mean, votes
from snapkv_local.policies.view import LayerView, PromptView


@dataclass(frozen=True)
class H2O(Ranked):
    """Heavy hitters by accumulated attention, and the most recent rows.

    Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language
    Models", arXiv 2306.14048, section 4. The paper evicts while tokens come; here every query of the
    prompt has seen all rows before it, and then the rows are chosen once. It needs the prompt's
    queries, all of them: a rival to measure, not one for long prompts.

    Attributes:
        recent: share of the kept rows, the window included, that are the most recent ones; half in
            the paper.
    """

    name: ClassVar[str] = "h2o"
    source: ClassVar[str] = "arXiv 2306.14048, section 4"

    recent: float = option(0.5, most=1)

    def n_observed(self, prompt: PromptView) -> int:
        """All."""
        return prompt.n_prompt

    def score(self, layer: LayerView, prompt: PromptView) -> Scores:
        """Attention of all rows, added up."""
        found = votes(layer, 0, prompt.n_prompt, n_prefix(prompt), "sum")
        return group_mean(found, layer.k.shape[0])

    def select(self, layer: LayerView, prompt: PromptView, n_rows: int) -> Ids:
        """Protected rows, recent ones, then the best scores."""
        always = self.always(prompt)
        check_n_rows(prompt, n_rows, len(always))
        n_recent = int(self.recent * (n_rows + prompt.window_size)) - prompt.window_size
        n_recent = min(max(0, n_recent), n_rows - len(always))
        n = n_prefix(prompt)
        first = np.union1d(always, np.arange(n - n_recent, n))
        return best(self.scores(layer, prompt), n_rows, first)
