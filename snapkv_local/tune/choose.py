"""The rows that the native engine's policy keeps, for many settings at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from snapkv_local.config import DEFAULT_VOTERS, SnapKVConfig
from snapkv_local.policies.rows import Ids, best
from snapkv_local.policies.scoring import Pool, Reduce, group_mean, votes, weighed
from snapkv_local.policies.view import LayerView


@dataclass(frozen=True, order=True)
class Setting:
    """What of SnapKVConfig decides which rows stay, beside the budget."""

    window: int = SnapKVConfig.window
    voters: int = DEFAULT_VOTERS
    reduce: Reduce = SnapKVConfig.reduce
    kernel: int = SnapKVConfig.kernel
    pool: Pool = SnapKVConfig.pool
    own: float = SnapKVConfig.own
    sinks: int = SnapKVConfig.sinks

    def to_dict(self) -> dict[str, int | float | str]:
        """Fields of SnapKVConfig."""
        return {
            "window": self.window,
            "voters": self.voters,
            "kernel": self.kernel,
            "pool": self.pool,
            "reduce": self.reduce,
            "own": self.own,
            "sinks": self.sinks,
        }


@dataclass(frozen=True, order=True)
class Trial:
    """A setting at a budget: rows for each KV head, the window included."""

    setting: Setting
    budget: int

    @property
    def is_valid(self) -> bool:
        """There are rows to choose, as SnapKVConfig asks for."""
        return self.budget > self.setting.window + self.setting.sinks


def choose(
    layers: Sequence[LayerView], n_prompt: int, window: int, trials: Sequence[Trial]
) -> Iterator[tuple[Trial, list[Ids]]]:
    """For each trial the prefix rows of each layer: [n_head_kv, n_rows], ascending.

    What policies.SnapKV selects, with votes counted once for all trials of a window, its voters and
    a reduce.

    Args:
        layers: with the queries of the largest window.
        window: of the engine, whose rows stay by themselves; at most the smallest of the trials.
            The rest of a trial's own window is among the rows.
        trials: whose budgets are below n_prompt.
    """
    ordered = sorted(trials)
    for (own_window, n_voters, reduce), group in groupby(
        ordered, key=lambda t: (t.setting.window, t.setting.voters, t.setting.reduce)
    ):
        members = list(group)
        found: dict[Trial, list[Ids]] = {trial: [] for trial in members}
        n_prefix, n_voted = n_prompt - own_window, n_prompt - n_voters
        own = np.arange(n_prefix, n_prompt - window, dtype=np.int32)
        for layer in layers:
            n_head_kv = layer.k.shape[0]
            counted = votes(layer, n_voted, n_prompt, n_voted, reduce)
            tail = np.tile(own, (n_head_kv, 1))
            for (kernel, kind, weight), alike in groupby(
                members, key=lambda t: (t.setting.kernel, t.setting.pool, t.setting.own)
            ):
                ranked = weighed(counted, kernel, kind, weight)
                scores = group_mean(ranked[:, :n_prefix], n_head_kv)
                for trial in alike:
                    always = range(trial.setting.sinks)
                    ids = best(scores, trial.budget - own_window, always)
                    found[trial].append(np.concatenate([ids, tail], axis=1))
        yield from found.items()
