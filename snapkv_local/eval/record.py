"""The record of an evaluation: settings, and every case's scores for every cell."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapkv_local.bench import record as records
from snapkv_local.errors import ConfigError
from snapkv_local.eval.case import Case
from snapkv_local.eval.cell import Cell
from snapkv_local.eval.settings import Settings

KIND = "eval"


@dataclass
class Record:
    """What was measured so far.

    Attributes:
        data: as it is written.
        path: of the file; None keeps it in memory.
    """

    data: dict[str, Any]
    path: Path | None = None

    @classmethod
    def open(
        cls,
        path: Path | None,
        stamp: dict[str, Any],
        settings: Settings,
        cases: Sequence[Case],
    ) -> Record:
        """A new record, or the one that the file holds if it is of the same settings.

        Args:
            stamp: model, machine, commit and date.

        Raises:
            ConfigError: the file holds something else.
        """
        fresh = {
            "kind": KIND,
            "format": records.FORMAT,
            **stamp,
            "settings": settings.to_dict(),
            "cells": {cell.name: cell.to_dict() for cell in settings.cells()},
            "seconds": {},
            "summary": [],
            "cases": {},
        }
        if path is None or not path.exists():
            return cls(fresh, path)
        found = cls(read(path), path)
        found.check(fresh, cases)
        # each case has the commit that it was measured with
        found.data.update(stamp, cells=fresh["cells"])
        return found

    def check(self, fresh: dict[str, Any], cases: Sequence[Case]) -> None:
        """Refuse to go on with a record of other settings, another model, or other cases.

        Raises:
            ConfigError: it is one.
        """
        pairs = [("model", self.data.get("model"), fresh["model"])]
        held = self.data.get("settings") or {}
        pairs += [(name, held.get(name), value) for name, value in fresh["settings"].items()]
        for name, there, here in pairs:
            if there != here:
                raise self._other(f"{name}: {json.dumps(there)} there, {json.dumps(here)} here")
        digests = {case.id: case.digest() for case in cases}
        for name, entry in self.data["cases"].items():
            if digests.get(name) != entry["digest"]:
                raise self._other(f"the tokens of case {name} differ")

    def _other(self, difference: str) -> ConfigError:
        return ConfigError(
            str(self.path),
            f"is the record of another evaluation ({difference})",
            "name another --json file, or delete this one",
        )

    def missing(self, case: Case, cells: Iterable[Cell]) -> list[Cell]:
        """The cells that a case has no scores for."""
        entry = self.data["cases"].get(case.id)
        return [cell for cell in cells if entry is None or cell.name not in entry["scores"]]

    def add(
        self,
        case: Case,
        cell: Cell,
        n_bytes: int,
        scores: dict[str, float],
        prefill: dict[str, float] | None = None,
    ) -> None:
        """Scores of a case in one cell, and the bytes that it keeps of the prompt.

        Args:
            prefill: figures of a prefill of the cell's own.
        """
        entry = self.data["cases"].setdefault(
            case.id,
            {
                "task": case.task,
                "document": case.document,
                "length": case.length,
                "depth": case.depth,
                "n_prompt": len(case.prompt),
                "n_after": len(case.after),
                "n_gold": len(case.gold),
                "digest": case.digest(),
                "commit": self.data["commit"],
                "bytes": {},
                "scores": {},
            },
        )
        entry["bytes"][cell.name] = n_bytes
        entry["scores"][cell.name] = scores
        if prefill is not None:
            entry.setdefault("prefills", {})[cell.name] = prefill

    def spent(self, what: str, seconds: float) -> None:
        """Seconds, by what they were spent on."""
        known = self.data["seconds"]
        known[what] = round(known.get(what, 0.0) + seconds, 6)

    def save(self) -> None:
        """Write the file, if there is one."""
        if self.path is not None:
            records.write(self.path, self.data)


def read(path: Path) -> dict[str, Any]:
    """What a record's file holds.

    Raises:
        ConfigError: it is none.
    """
    cure = "name another --json file"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ConfigError(str(path), f"cannot be read as a record ({e})", cure) from e
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise ConfigError(str(path), "is there, and is not a record of an evaluation", cure)
    records.check_format(data, str(path))
    return data
