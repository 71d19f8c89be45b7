"""The rows that settings keep, for many of them at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

import numpy as np

from snapkv_local.config import DEFAULT_VOTERS, SnapKVConfig
from snapkv_local.policies import LayerView, Policy, PromptView
from snapkv_local.policies.question import Question
from snapkv_local.policies.rows import Ids, best
from snapkv_local.policies.scoring import Pool, Reduce, group_mean, votes, weighed
from snapkv_local.policies.sentence import Sentence
from snapkv_local.policies.snapkv import SnapKV
from snapkv_local.policies.value import Value

# what chooses the rows; the first two run in the engine, the others in Python
By = Literal["snapkv", "question", "value", "sentence"]
IN_ENGINE: tuple[By, ...] = ("snapkv", "question")


@dataclass(frozen=True, order=True)
class Setting:
    """What of SnapKVConfig decides which rows stay, beside the budget.

    Attributes:
        by: "snapkv": the last `voters` tokens vote; "question": the question's words, where there is
            one (voters="question"); "value" and "sentence": the policies of these names, with the
            other fields as their options.
    """

    window: int = SnapKVConfig.window
    voters: int = DEFAULT_VOTERS
    reduce: Reduce = SnapKVConfig.reduce
    kernel: int = SnapKVConfig.kernel
    pool: Pool = SnapKVConfig.pool
    own: float = SnapKVConfig.own
    sinks: int = SnapKVConfig.sinks
    by: By = "snapkv"

    def to_dict(self) -> dict[str, int | float | str]:
        """Fields of SnapKVConfig."""
        if self.by not in IN_ENGINE:
            return {"window": self.window, "policy": self.policy(None).spec}
        return {
            "window": self.window,
            "voters": self.voters if self.by == "snapkv" else "question",
            "kernel": self.kernel,
            "pool": self.pool,
            "reduce": self.reduce,
            "own": self.own,
            "sinks": self.sinks,
        }

    def policy(self, question: tuple[int, int] | None) -> Policy:
        """What chooses the same rows, in Python.

        Args:
            question: of the prompt, if there is one.
        """
        options: dict[str, Any] = {
            "kernel": self.kernel,
            "pool": self.pool,
            "reduce": self.reduce,
            "own": self.own,
            "sinks": self.sinks,
        }
        if self.by == "sentence":
            rows = SnapKV(kernel=1, reduce=self.reduce, window=self.voters)
            return Sentence(of=rows, sinks=self.sinks)
        if self.by == "question" and question is not None:
            return Question(**options)
        kind = Value if self.by == "value" else SnapKV
        return kind(window=self.voters, **options)


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
    counted = [trial for trial in trials if trial.setting.by == "snapkv"]
    others = [trial for trial in trials if trial.setting.by != "snapkv"]
    yield from _by_votes(layers, prompt, counted)
    yield from _by_policies(layers, prompt, others)


def _by_votes(
    layers: Sequence[LayerView], prompt: PromptView, trials: Sequence[Trial]
) -> Iterator[tuple[Trial, list[Ids]]]:
    """What policies.SnapKV selects, with votes counted once for all trials that have the same ones."""
    n_prompt = prompt.n_prompt
    for (own_window, n_voters, reduce), group in groupby(
        sorted(trials), key=lambda t: (t.setting.window, t.setting.voters, t.setting.reduce)
    ):
        members = list(group)
        found: dict[Trial, list[Ids]] = {trial: [] for trial in members}
        n_prefix, n_voted = n_prompt - own_window, n_prompt - n_voters
        tail = range(n_prefix, n_prompt - prompt.window)
        for layer in layers:
            counted = votes(layer, n_voted, n_prompt, n_voted, reduce)
            for (kernel, kind, own), alike in groupby(
                members, key=lambda t: (t.setting.kernel, t.setting.pool, t.setting.own)
            ):
                ranked = weighed(counted, kernel, kind, own)
                scores = group_mean(ranked[:, :n_prefix], layer.k.shape[0])
                for trial in alike:
                    always = range(trial.setting.sinks)
                    ids = best(scores, trial.budget - own_window, always)
                    found[trial].append(_and(ids, tail))
        yield from found.items()


def _by_policies(
    layers: Sequence[LayerView], prompt: PromptView, trials: Sequence[Trial]
) -> Iterator[tuple[Trial, list[Ids]]]:
    """What other policies select; budgets of one setting share its scores."""
    for setting, group in groupby(sorted(trials), key=lambda t: t.setting):
        question = _in_window(prompt, setting.window)
        view = replace(prompt, window=setting.window, question=question, cache={})
        policy = setting.policy(question)
        tail = range(prompt.n_prompt - setting.window, prompt.n_prompt - prompt.window)
        for trial in group:
            n_rows = trial.budget - setting.window
            yield trial, [_and(policy.select(layer, view, n_rows), tail) for layer in layers]


def _and(ids: Ids, window: range) -> Ids:
    """Rows of each head, [n_head_kv, n], and behind them the rest of a trial's own window."""
    return np.concatenate([ids, np.tile(np.asarray(window, np.int32), (len(ids), 1))], axis=1)


def _in_window(prompt: PromptView, window: int) -> tuple[int, int] | None:
    """The part of the question that is in the window, which is what votes in the engine."""
    if prompt.question is None:
        return None
    begin, end = prompt.question
    begin = max(begin, prompt.n_prompt - window)
    return (begin, end) if begin < end else None
