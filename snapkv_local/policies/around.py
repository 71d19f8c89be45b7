"""What policies have in common that put another one's scores to a different use."""

from __future__ import annotations

import numpy as np

from snapkv_local.policies.ranked import Ranked
from snapkv_local.policies.rows import Positions
from snapkv_local.policies.view import PromptView


class Around(Ranked):
    """A policy around an inner one, which observes and protects what that one does.

    Attributes:
        of: the policy that scores the rows; each class has it as its last option.
    """

    of: Ranked

    def asks(self) -> bool:
        """As the inner policy."""
        return self.of.asks()

    def seeks(self) -> bool:
        """As the inner policy."""
        return self.of.seeks()

    def repeats(self) -> bool:
        """As the inner policy."""
        return self.of.repeats()

    def n_observed(self, prompt: PromptView) -> int:
        """As the inner policy."""
        return self.of.n_observed(prompt)

    def always(self, prompt: PromptView) -> Positions:
        """What this one and the inner one protect."""
        return np.union1d(super().always(prompt), self.of.always(prompt))
