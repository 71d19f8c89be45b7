"""The rows that settings keep, for many of them at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

import numpy as np

from snapkv_local.config import DEFAULT_VOTERS, SnapKVConfig
from snapkv_local.policies import LayerView, PromptView
from snapkv_local.policies.rows import Ids, best
from snapkv_local.policies.scoring import Pool, Reduce, group_mean, votes, weighed
from snapkv_local.policies.sentence import Sentence
from snapkv_local.policies.snapkv import SnapKV
from snapkv_local.policies.value import Value

# what chooses the rows: the engine, or a policy in Python
By = Literal["snapkv", "value", "sentence"]


@dataclass(frozen=True, order=True)
class Setting:
    """What of SnapKVConfig decides which rows stay, beside the budget.

    Attributes:
        voters: 0 for the question's words (SnapKVConfig(voters="question")).
        by: the policy, with the other fields as its options.
    """

    window: int = SnapKVConfig.window
    voters: int = 0
    reduce: Reduce = SnapKVConfig.reduce
    kernel: int = SnapKVConfig.kernel
    pool: Pool = SnapKVConfig.pool
    own: float = SnapKVConfig.own
    sinks: int = SnapKVConfig.sinks
    by: By = "snapkv"

    def to_dict(self) -> dict[str, int | float | str]:
        """Fields of SnapKVConfig."""
        if self.by != "snapkv":
            return {"window": self.window, "policy": self.policy().spec}
        return {
            "window": self.window,
            "voters": self.voters or "question",
            "kernel": self.kernel,
            "pool": self.pool,
            "reduce": self.reduce,
            "own": self.own,
            "sinks": self.sinks,
        }

    def policy(self) -> SnapKV | Sentence:
        """What chooses the same rows, in Python."""
        options: dict[str, Any] = {
            "prefer": "last" if self.voters else "question",
            "window": self.voters or DEFAULT_VOTERS,
            "reduce": self.reduce,
        }
        if self.by == "sentence":
            return Sentence(of=SnapKV(kernel=1, **options), sinks=self.sinks)
        kind = Value if self.by == "value" else SnapKV
        return kind(kernel=self.kernel, pool=self.pool, own=self.own, sinks=self.sinks, **options)


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
    layers: Sequence[LayerView], prompt: PromptView, trials: Sequence[Trial]
) -> Iterator[tuple[Trial, list[Ids]]]:
    """For each trial the prefix rows of each layer: [n_head_kv, n_rows], ascending.

    Args:
        layers: with the queries of the largest window.
        prompt: its window is the engine's, whose rows stay by themselves; at most the smallest of the
            trials. The rest of a trial's own window is among the rows.
        trials: whose budgets are below the prompt's tokens.
    """
    ordered = sorted(trials, key=lambda t: (t.setting.by, t))
    for by, group in groupby(ordered, key=lambda t: t.setting.by):
        yield from (_by_votes if by == "snapkv" else _by_policy)(layers, prompt, list(group))


def _by_votes(
    layers: Sequence[LayerView], prompt: PromptView, trials: Sequence[Trial]
) -> Iterator[tuple[Trial, list[Ids]]]:
    """What policies.SnapKV selects, with votes counted once for all trials that have the same ones."""
    for (window, _, reduce), group in groupby(
        trials, key=lambda t: (t.setting.window, t.setting.voters, t.setting.reduce)
    ):
        members = list(group)
        found: dict[Trial, list[Ids]] = {trial: [] for trial in members}
        n_prefix = prompt.n_prompt - window
        policy = members[0].setting.policy()
        assert isinstance(policy, SnapKV)
        begin, end = policy.voters(replace(prompt, window=window))
        tail = range(n_prefix, prompt.n_prompt - prompt.window)
        for layer in layers:
            counted = votes(layer, begin, end, begin, reduce)
            for (kernel, kind, own), alike in groupby(
                members, key=lambda t: (t.setting.kernel, t.setting.pool, t.setting.own)
            ):
                ranked = weighed(counted, kernel, kind, own)
                scores = group_mean(ranked[:, :n_prefix], layer.k.shape[0])
                for trial in alike:
                    always = range(trial.setting.sinks)
                    ids = best(scores, trial.budget - window, always)
                    found[trial].append(_and(ids, tail))
        yield from found.items()


def _by_policy(
    layers: Sequence[LayerView], prompt: PromptView, trials: Sequence[Trial]
) -> Iterator[tuple[Trial, list[Ids]]]:
    """What another policy selects; budgets of one setting share its scores."""
    for setting, group in groupby(trials, key=lambda t: t.setting):
        view = replace(prompt, window=setting.window, cache={})
        policy = setting.policy()
        tail = range(prompt.n_prompt - setting.window, prompt.n_prompt - prompt.window)
        for trial in group:
            n_rows = trial.budget - setting.window
            yield trial, [_and(policy.select(layer, view, n_rows), tail) for layer in layers]


def _and(ids: Ids, window: range) -> Ids:
    """Rows of each head, [n_head_kv, n], and behind them the rest of a trial's own window."""
    return np.concatenate([ids, np.tile(np.asarray(window, np.int32), (len(ids), 1))], axis=1)
