"""Policies within a prefill: Python chooses the rows of each layer in the engine's place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local.native import api  # isort: skip

from snapkv_local.config import SnapKVConfig
from snapkv_local.policies import LayerView, Policy, PromptView
from snapkv_local.policies.rows import Ids, check_n_rows
from snapkv_local.policies.scoring import group_mean, votes
from snapkv_local.prompt.parts import Parts


@dataclass(frozen=True)
class Choice:
    """A policy and the prompt whose rows it is to choose.

    Attributes:
        policy: that chooses.
        prompt: as it sees it.
        n_voters: last rows whose attention the coverage counts, as the engine does.
        n_observed: queries at the prompt's end that these two need.
    """

    policy: Policy
    prompt: PromptView
    n_voters: int
    n_observed: int

    @classmethod
    def of(cls, policy: Policy, config: SnapKVConfig, n_prompt: int, parts: Parts) -> Choice:
        """For a prompt of which rows are evicted.

        Raises:
            ConfigError: the policy cannot work on the prompt, or the budget does not hold what it
                always keeps.
        """
        spans = [(max(0, begin), min(end, n_prompt)) for begin, end in parts.protected]
        prompt = PromptView(
            n_prompt=n_prompt,
            window_size=config.window_size,
            protected=tuple((begin, end) for begin, end in spans if begin < end),
            question=parts.question,
            sentences=parts.sentences,
        )
        n_observed = max(config.n_voters(), policy.n_observed(prompt))
        n_rows = config.n_kept(n_prompt) - config.window_size
        check_n_rows(prompt, n_rows, len(policy.always(prompt)))
        return cls(policy, prompt, config.n_voters(), n_observed)

    def rows(self, layer: LayerView, n_rows: int) -> tuple[Ids, npt.NDArray[np.float32]]:
        """Prefix rows of a layer, [n_head_kv, n_rows], and the coverage of its heads, [n_head_kv]."""
        ids = self.policy.select(layer, self.prompt, n_rows)
        self.prompt.cache.clear()  # no other budget will ask
        n = self.prompt.n_prompt
        found = votes(layer, n - self.n_voters, n, n, "sum")
        mass = group_mean(found, layer.k.shape[0]).astype(np.float64)
        kept = np.take_along_axis(mass, ids.astype(np.int64), axis=1).sum(axis=1)
        held = kept + mass[:, n - self.prompt.window_size :].sum(axis=1)
        return ids, (held / mass.sum(axis=1)).astype(np.float32)


@contextmanager
def tapped(ctx: Any, choice: Choice | None, raised: list[BaseException]) -> Iterator[None]:
    """While open, prefills of a context keep the rows that are chosen here.

    Args:
        ctx: llama_context.
        choice: None leaves it to the engine.
        raised: gets what the policy raises, which ends the prefill.
    """
    if choice is None:
        yield
        return
    n_layer = api.llama_snapkv_n_layer(ctx)

    def choose(data: Any, _user_data: Any) -> None:
        d = data.contents
        try:
            layer = _view(d, n_layer)
            ids = np.ctypeslib.as_array(d.ids, (d.n_head_kv, d.n_kept))
            coverage = np.ctypeslib.as_array(d.coverage, (d.n_head_kv,))
            ids[:], coverage[:] = choice.rows(layer, d.n_kept)
        except BaseException as e:  # cannot pass through native frames
            raised.append(e)
            d.ids[0] = -1  # which the engine refuses

    # it must outlive its use
    callback = api.llama_snapkv_tap_callback(choose)
    api.llama_snapkv_set_tap(ctx, callback, None)
    try:
        yield
    finally:
        api.llama_snapkv_set_tap(ctx, api.llama_snapkv_tap_callback(), None)


def _view(d: api.llama_snapkv_tap_data, n_layer: int) -> LayerView:
    """A layer as it lies in the engine's memory, until the callback ends."""
    return LayerView(
        index=d.ic,
        n_layer=n_layer,
        q=np.ctypeslib.as_array(d.q, (d.n_head, d.n_queries, d.head_dim)),
        k=np.ctypeslib.as_array(d.k, (d.n_head_kv, d.n_prompt, d.head_dim)),
        v=np.ctypeslib.as_array(d.v, (d.n_head_kv, d.n_prompt, d.head_dim_v)),
        scale=d.scale,
        softcap=d.softcap,
    )
