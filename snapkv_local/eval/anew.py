"""A Llama for evaluations: it keeps whole prompts, and prefills anew what no choice of rows can give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from snapkv_local.config import SnapKVConfig
from snapkv_local.llama.llama import Llama
from snapkv_local.native.context import Progress
from snapkv_local.policies.view import PromptView
from snapkv_local.stats import PrefillStats


class EvalLlama(Llama):
    """Made with a vault, and cells for whole prompts."""

    _whole: SnapKVConfig | None = None  # of these prompts, once another was prefilled

    def prefill(self, tokens: Sequence[int], progress: Progress | None = None) -> PrefillStats:
        """Evaluate a prompt; all its rows stay."""
        if self._whole is not None:
            self.set_snapkv(self._whole)
            self.set_protected(())
            self.set_question(None)
        return super().prefill(tokens, progress)

    def prefill_with(
        self, tokens: Sequence[int], budget: int, settings: Mapping[str, Any], view: PromptView
    ) -> PrefillStats:
        """Evaluate a prompt and keep rows of it, without a vault unless the settings have one.

        Args:
            tokens: [n_prompt].
            budget: rows for each KV head.
            settings: of SnapKVConfig, beside the budget and the window.
            view: of the prompt.
        """
        self._whole = self._whole or self.snapkv
        assert self._whole is not None
        self.set_snapkv(replace(self._whole, budget=budget, **{"vault": "off", **settings}))
        self.set_protected(view.protected)
        self.set_question(view.question)
        return super().prefill(tokens)

    def rewind(self) -> None:
        """Go back to the prompt's end."""
        self.n_tokens = self.n_prompt
