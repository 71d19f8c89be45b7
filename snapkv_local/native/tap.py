"""Policies within a prefill: Python chooses the rows of each layer in the engine's place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local.native import structs  # isort: skip

from snapkv_local.config import SnapKVConfig
from snapkv_local.policies import LayerView, Policy, PromptView
from snapkv_local.policies.rows import Ids, check_n_rows
from snapkv_local.policies.scoring import group_mean, votes
from snapkv_local.prompt.parts import Parts

# gets what the scorer of each cached layer sees, before its rows are evicted
Tap = Callable[[structs.llama_snapkv_tap_data], object]


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


def choosing(choice: Choice, n_layer: int) -> Tap:
    """A tap that overwrites the rows which the engine has chosen, and their coverage."""

    def choose(data: structs.llama_snapkv_tap_data) -> None:
        ids = np.ctypeslib.as_array(data.ids, (data.n_head_kv, data.n_kept))
        coverage = np.ctypeslib.as_array(data.coverage, (data.n_head_kv,))
        ids[:], coverage[:] = choice.rows(_view(data, n_layer), data.n_kept)

    return choose


def callback(tap: Tap | None, raised: list[BaseException]) -> Any:
    """The native form of a tap, which must outlive its use.

    Args:
        raised: gets what the tap raises, which ends the prefill.
    """
    if tap is None:
        return structs.llama_snapkv_tap_callback()

    def call(data: Any, _user_data: Any) -> None:
        try:
            tap(data.contents)
        except BaseException as e:  # cannot pass through native frames
            raised.append(e)
            if data.contents.n_kept > 0:
                data.contents.ids[0] = -1  # which the engine refuses

    return structs.llama_snapkv_tap_callback(call)


def _view(d: structs.llama_snapkv_tap_data, n_layer: int) -> LayerView:
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
