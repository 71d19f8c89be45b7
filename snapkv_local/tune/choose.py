"""The rows that settings keep, for many of them at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

import numpy as np

from snapkv_local.config import SnapKVConfig
from snapkv_local.policies import LayerView, PromptView
from snapkv_local.policies.rows import Ids, best
from snapkv_local.policies.scoring import Aggregation, Pooling, group_mean, votes, weighed
from snapkv_local.policies.sentence import Sentence
from snapkv_local.policies.snapkv import SnapKV
from snapkv_local.policies.snapkv_paper import SnapKVPaper
from snapkv_local.policies.value import Value

# what chooses the rows: the engine, or a policy in Python
By = Literal["snapkv", "value", "sentence"]


@dataclass(frozen=True, order=True)
class Setting:
    """What of SnapKVConfig decides which rows stay, beside the budget.

    Attributes:
        observation: 0 for "question", so that settings have an order.
        by: the policy, with the other fields as its options.
    """

    window_size: int = SnapKVConfig.window_size
    observation: int = 0
    aggregation: Aggregation = SnapKVConfig.aggregation
    kernel_size: int = SnapKVConfig.kernel_size
    pooling: Pooling = SnapKVConfig.pooling
    self_weight: float = SnapKVConfig.self_weight
    n_sink: int = SnapKVConfig.n_sink
    by: By = "snapkv"

    def to_dict(self) -> dict[str, int | float | str]:
        """Fields of SnapKVConfig."""
        if self.by != "snapkv":
            return {"window_size": self.window_size, "policy": self.policy().spec}
        return {
            "window_size": self.window_size,
            "observation": self.observation or "question",
            "kernel_size": self.kernel_size,
            "pooling": self.pooling,
            "aggregation": self.aggregation,
            "self_weight": self.self_weight,
            "n_sink": self.n_sink,
        }

    def policy(self) -> SnapKVPaper | Sentence:
        """What chooses the same rows, in Python."""
        options: dict[str, Any] = {
            "observation": self.observation or "question",
            "aggregation": self.aggregation,
        }
        if self.by == "sentence":
            return Sentence(of=SnapKVPaper(kernel_size=1, **options), n_sink=self.n_sink)
        kind = Value if self.by == "value" else SnapKV
        return kind(
            kernel_size=self.kernel_size,
            pooling=self.pooling,
            self_weight=self.self_weight,
            n_sink=self.n_sink,
            **options,
        )


@dataclass(frozen=True, order=True)
class Trial:
    """A setting at a budget: rows for each KV head, the window included."""

    setting: Setting
    budget: int

    @property
    def is_valid(self) -> bool:
        """There are rows to choose, as SnapKVConfig asks for."""
        return self.budget > self.setting.window_size + self.setting.n_sink


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
    for (window_size, _, aggregation), group in groupby(
        trials, key=lambda t: (t.setting.window_size, t.setting.observation, t.setting.aggregation)
    ):
        members = list(group)
        found: dict[Trial, list[Ids]] = {trial: [] for trial in members}
        n_prefix = prompt.n_prompt - window_size
        policy = members[0].setting.policy()
        assert isinstance(policy, SnapKVPaper)
        begin, end = policy.voters(replace(prompt, window_size=window_size))
        tail = range(n_prefix, prompt.n_prompt - prompt.window_size)
        for layer in layers:
            counted = votes(layer, begin, end, begin, aggregation)
            for (kernel_size, pooling, self_weight), alike in groupby(
                members,
                key=lambda t: (t.setting.kernel_size, t.setting.pooling, t.setting.self_weight),
            ):
                ranked = weighed(counted, kernel_size, pooling, self_weight)
                scores = group_mean(ranked[:, :n_prefix], layer.k.shape[0])
                for trial in alike:
                    always = range(trial.setting.n_sink)
                    ids = best(scores, trial.budget - window_size, always)
                    found[trial].append(_and(ids, tail))
        yield from found.items()


def _by_policy(
    layers: Sequence[LayerView], prompt: PromptView, trials: Sequence[Trial]
) -> Iterator[tuple[Trial, list[Ids]]]:
    """What another policy selects; budgets of one setting share its scores."""
    for setting, group in groupby(trials, key=lambda t: t.setting):
        view = replace(prompt, window_size=setting.window_size, cache={})
        policy = setting.policy()
        tail = range(prompt.n_prompt - setting.window_size, prompt.n_prompt - prompt.window_size)
        for trial in group:
            n_rows = trial.budget - setting.window_size
            yield trial, [_and(policy.select(layer, view, n_rows), tail) for layer in layers]


def _and(ids: Ids, window: range) -> Ids:
    """Rows of each head, [n_head_kv, n], and behind them the rest of a trial's own window."""
    return np.concatenate([ids, np.tile(np.asarray(window, np.int32), (len(ids), 1))], axis=1)
