"""What an evaluation is asked to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from snapkv_local.errors import ConfigError
from snapkv_local.eval.case import Case
from snapkv_local.eval.cell import FULL, REFERENCE, Cell, cells_of
from snapkv_local.eval.tasks import Task, Wanted
from snapkv_local.plan.layers import KvType
from snapkv_local.policies.snapkv import SnapKV
from snapkv_local.policies.view import PromptView


@dataclass(frozen=True)
class Settings:
    """All that decides the scores, beside the model.

    Attributes:
        tasks: that make the cases.
        wanted: how many cases, how long.
        policies: their canonical texts.
        budgets: rows for each KV head, the window included.
        kv_types: of the caches; the full cache in f16 is the reference, whether named or not.
        full_kv_types: of full caches that are measured beside these, without policies.
        window: rows at the prompt's end that always stay.
        protect_system: what stands before the user's text always stays, too.

    Raises:
        ConfigError: a budget leaves no row to choose.
    """

    tasks: tuple[Task, ...]
    wanted: Wanted
    policies: tuple[str, ...]
    budgets: tuple[int, ...]
    kv_types: tuple[KvType, ...] = ("f16",)
    full_kv_types: tuple[KvType, ...] = ()
    window_size: int = 32
    protect_system: bool = False

    def __post_init__(self) -> None:
        low = [budget for budget in self.budgets if budget <= self.window_size]
        if low:
            raise ConfigError(
                f"budget {low[0]}",
                f"leaves no row to choose: the window of {self.window_size} rows always stays",
                "give larger --budgets or a smaller --window-size",
            )

    def cells(self) -> list[Cell]:
        """All of them, the reference first."""
        found = [REFERENCE]
        for kv_type in self.kv_types:
            found += cells_of(self.policies, self.budgets, kv_type)
        found += [Cell(FULL, 0, kv_type) for kv_type in self.full_kv_types]
        return list(dict.fromkeys(found))

    def view(self, case: Case) -> PromptView:
        """What policies see of a case's prompt."""
        protected = (case.system,) if self.protect_system and case.system[1] > 0 else ()
        return PromptView(
            n_prompt=len(case.prompt),
            window_size=self.window_size,
            protected=protected,
            question=case.question,
            sentences=case.sentences,
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON, and to tell whether a record is of the same settings."""
        return {
            "tasks": {task.name: task.settings() for task in self.tasks},
            "lengths": list(self.wanted.lengths),
            "documents": self.wanted.n_documents,
            "questions": self.wanted.n_questions,
            "depths": self.wanted.n_depths,
            "seed": self.wanted.seed,
            "split": self.wanted.split,
            "policies": list(self.policies),
            # what that name stands for, which has changed before
            SnapKV.name: dataclasses.asdict(SnapKV()),
            "budgets": list(self.budgets),
            "kv_types": list(self.kv_types),
            "full_kv_types": list(self.full_kv_types),
            "window_size": self.window_size,
            "protect_system": self.protect_system,
        }


def check_cases(
    cases: Sequence[Case], settings: Settings, n_ctx_train: int, repeats: bool = False
) -> None:
    """Refuse cases that the model or the window cannot take.

    Args:
        repeats: a policy repeats the prompts.

    Raises:
        ConfigError: a prompt is longer than the model's context, or not longer than the window.
    """
    if not cases:
        raise ConfigError("the tasks", "make no cases", "give more --cases")
    for case in cases:
        n = len(case.prompt) + case.n_after
        twice = len(case.prompt) + case.n_repeated if repeats else 0
        if max(n, twice) > n_ctx_train:
            what = "answer included" if n >= twice else "which a policy repeats"
            raise ConfigError(
                f"case {case.id} of {max(n, twice):,} tokens, {what}",
                f"is longer than the model's context of {n_ctx_train:,}",
                "give shorter --lengths or shorter documents",
            )
        if len(case.prompt) <= settings.window_size + 1:
            raise ConfigError(
                f"case {case.id} of {len(case.prompt)} tokens",
                f"has nothing to compress before the window of {settings.window_size}",
                "give longer prompts or a smaller --window-size",
            )
