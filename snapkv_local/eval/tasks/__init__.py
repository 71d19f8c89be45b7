"""Tasks by name. One file for each kind."""

from __future__ import annotations

from snapkv_local.errors import ConfigError
from snapkv_local.eval.tasks import continuation, count, files, keys, needle, several, trace, wander
from snapkv_local.eval.tasks.task import Task, Wanted
from snapkv_local.models.resolve import expanded

__all__ = ["TASKS", "Task", "Wanted", "get"]

_MADE: tuple[Task, ...] = (
    *needle.TASKS,
    *several.TASKS,
    *keys.TASKS,
    *trace.TASKS,
    *count.TASKS,
    *wander.TASKS,
    *continuation.TASKS,
)
TASKS: dict[str, Task] = {task.name: task for task in _MADE}


def get(name: str) -> Task:
    """The task of that name, or of a file: jsonl:FILE, longbench:FILE.

    Raises:
        ConfigError: there is none.
    """
    kind, _, file = name.partition(":")
    if kind in files.KINDS and file:
        return files.KINDS[kind](expanded(file))
    if name not in TASKS:
        known = [*TASKS, *(f"{kind}:FILE" for kind in files.KINDS)]
        raise ConfigError(f"task {name!r}", "is not a task", f"choose from {', '.join(known)}")
    return TASKS[name]
