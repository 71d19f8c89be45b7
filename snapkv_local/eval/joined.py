"""Several records of evaluations as one: of other lengths, policies or cells, of the same model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from snapkv_local.errors import ConfigError
from snapkv_local.eval.record import read

# settings that records may differ in: what they have of them is put together
_LISTS = ("lengths", "policies", "budgets", "kv_types", "full_kv_types")
_EQUAL = ("questions", "depths", "seed", "split", "window_size", "protect_system", "snapkv")


def join(paths: Sequence[Path]) -> dict[str, Any]:
    """One record with the cases and the cells of all; what it says of the run is the first one's.

    Raises:
        ConfigError: a file is no record, or they are not of one model and one set of cases.
    """
    first, *others = ((path, read(path)) for path in paths)
    found = first[1]
    for path, data in others:
        for name in ("name", "type"):
            _check(path, first[0], f"model, {name}", data["model"][name], found["model"][name])
        ours, theirs = found["settings"], data["settings"]
        for name in _EQUAL:
            _check(path, first[0], name, theirs.get(name), ours.get(name))
        for name in _LISTS:
            ours[name] = list(dict.fromkeys([*ours.get(name, []), *theirs.get(name, [])]))
        ours["tasks"] = {**ours["tasks"], **theirs["tasks"]}
        found["cells"] = {**found["cells"], **data["cells"]}
        for name, case in data["cases"].items():
            known = found["cases"].setdefault(name, case)
            if known is not case:
                _check(path, first[0], f"tokens of case {name}", case["digest"], known["digest"])
                known["scores"] = {**case["scores"], **known["scores"]}
                known["bytes"] = {**case["bytes"], **known["bytes"]}
    return found


def _check(path: Path, first: Path, what: str, there: Any, here: Any) -> None:
    if there != here:
        raise ConfigError(
            str(path),
            f"is not a part of one evaluation with {first} ({what}: {json.dumps(there)} there, "
            f"{json.dumps(here)} here)",
            "show them one by one",
        )
