"""The rows that a prompt has left: which they are, and how a caller chooses others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local.llama.completion import CompletingLlama  # isort: skip

from snapkv_local import policies
from snapkv_local.errors import ConfigError
from snapkv_local.policies.view import Again, LayerView, PromptView
from snapkv_local.prompt.parts import ranges
from snapkv_local.stats import RecallStats


class KeepingLlama(CompletingLlama):
    """What Llama says of the rows that it keeps, and is told."""

    def kept_positions(self) -> npt.NDArray[np.int32]:
        """Prompt positions kept before the window, ascending.

        Returns:
            int32 [n_layer_cached, n_head_kv, n_kept_prefix].

        Raises:
            ConfigError: the prompt was not compressed, or the heads keep different numbers of rows.
        """
        return self._context("kept_positions").kept()

    def cached_layers(self) -> tuple[int, ...]:
        """The model's numbers of the layers whose cache is compressed, from 0: [n_layer_cached].

        Layers with a sliding window or without attention are not among them.
        """
        return self._context("cached_layers").layers()

    def prefill_scores(self) -> npt.NDArray[np.float32]:
        """Pooled scores of the last prefill.

        Returns:
            float32 [n_layer_cached, n_head_kv, n_prompt - window].

        Raises:
            ConfigError: made without keep_scores=True, or the prompt was not compressed.
        """
        return self._context("prefill_scores").scores()

    def selected_positions(self) -> npt.NDArray[np.int32]:
        """Positions of the rows that later layers have computed, after a selective prefill.

        Returns:
            int32 [n_selected], ascending; of an exact prefill, and where no selection was made, none.
        """
        return self._context("selected_positions").selected()

    def recalls(self) -> list[RecallStats]:
        """The recalls of the answer so far, with SnapKVConfig(recall=True): when, how many rows, seconds.

        They begin anew with each prompt.
        """
        return self._context("recalls").recalls()

    def coverage(self) -> npt.NDArray[np.float32]:
        """Share of the window's attention mass that lies on the kept rows, after the last prefill.

        Returns:
            float32 [n_layer_cached, n_head_kv], in [0, 1]; last_prefill.coverage is its mean.

        Raises:
            ConfigError: the prompt was not compressed.
        """
        return self._context("coverage").coverage()

    def layer_views(self) -> list[LayerView]:
        """Queries, keys and values of each cached layer, from the vault, as policies see them.

        Raises:
            ConfigError: made without a vault, or nothing was prefilled.
            DocumentError: the vault reads from a file that has changed.
        """
        self._check_vault()
        return self._context("layer_views").layer_views()

    def repeated_views(self, begin: int = 0) -> list[LayerView]:
        """As layer_views(), and what policies see that repeat the prompt, such as `replay`.

        The prompt's tokens are evaluated once more behind it, which takes as long as the prompt has
        taken and more. Afterwards the context holds the prompt again, and nothing that followed it.

        Args:
            begin: position from which on it is repeated, such as the end of the system prompt.

        Raises:
            ConfigError: made without a vault, nothing was prefilled, or keep_queries is less than what
                is repeated.
            LongPromptError: the context does not hold the prompt twice.
        """
        views = self.layer_views()
        prompt = self.input_ids[: self.n_prompt].tolist()
        n_again = len(prompt) - begin
        if self.keep_queries < n_again:
            raise ConfigError(
                f"a prompt of which {n_again} tokens are repeated",
                f"needs their queries, and the vault keeps those of the last {self.keep_queries}",
                f"give Llama(keep_queries={n_again})",
            )
        self.prefill([*prompt, *prompt[begin:]])
        twice = self.layer_views()
        self.prefill(prompt)
        return [
            replace(view, again=Again(both.q[:, -n_again:], both.k[:, -n_again:]))
            for view, both in zip(views, twice, strict=True)
        ]

    def keep_for_later(self, budget: int, policy: str = "replay", begin: int = 0) -> None:
        """Keep rows of the last prompt for questions that are not known yet, and free the vault.

        save_session() then writes a file with these rows alone, which a Llama without a vault goes on
        from. This Llama, with its vault, reads the prompt anew.

        Args:
            budget: rows that each KV head keeps, the window included; a prompt within it stays whole.
            policy: one that looks at no question, such as replay.
            begin: as for repeated_views().

        Raises:
            ConfigError: as repeated_views(), or no such policy, or the budget does not hold what it
                always keeps.
            NoRoomError: a layer keeps more rows than the cache has cells.
        """
        chosen = policies.parse(policy)
        self._check_vault()
        assert self.snapkv is not None
        window_size = self.snapkv.window_size
        prompt = PromptView(self.n_prompt, window_size, tuple(self._marks.protected))
        if budget < self.n_prompt:
            layers = self.repeated_views(begin) if chosen.repeats() else self.layer_views()
            rows = chosen.rows(budget - window_size, layers, prompt)
            self.select_rows(
                [chosen.select(layer, prompt, n) for layer, n in zip(layers, rows, strict=True)]
            )
        self.clear_vault()

    def select_rows(self, ids: Sequence[npt.NDArray[np.int32]] | None) -> None:
        """Choose other rows of the last prompt, from the vault. What followed the prompt is removed.

        Args:
            ids: for each cached layer int32 [n_head_kv, n_kept]: prompt positions before the window,
                ascending for each head. Layers may differ in n_kept. The window's rows stay. None
                keeps the whole prompt, if the cache has cells for it.

        Raises:
            ConfigError: made without a vault, or ids do not fit the prompt.
            NoRoomError: more rows than the cache has cells.
            DocumentError: the vault reads from a file that has changed.
        """
        self._check_vault()
        self._context("select_rows").select_rows(ids)
        self.n_tokens = self.n_prompt

    def set_protected(self, spans: Sequence[tuple[int, int]]) -> None:
        """Protect positions in later prefills, such as the system prompt's: they stay whatever the votes say.

        Args:
            spans: [begin, end) positions. Those in a prompt's window stay anyway; positions of an
                answer are protected from the time when they are no longer in the window.

        Raises:
            ConfigError: a span is not a range. A prefill whose budget does not hold them raises it, too.
        """
        self._context("set_protected")
        self._marks.protected = ranges("protected positions", spans)

    def set_question(self, span: tuple[int, int] | None) -> None:
        """Say where the question stands in later prompts; its words vote for the rows.

        That is for policies that ask (`question`, `windows`), and for `observation="question"`, where
        those of its words vote that are in the window. In a chat it is found without this: it is
        the last paragraph of the last user turn.

        Args:
            span: [begin, end) positions of its words, instead of a chat's; None for the chat's.
        """
        self._marks.question = span

    def clear_vault(self) -> None:
        """Free the vault; the conversation goes on."""
        self._context("clear_vault").clear_vault()
        self._attached = None
