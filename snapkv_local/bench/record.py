"""What a record of measurements says beside its figures."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

from snapkv_local.errors import ConfigError
from snapkv_local.hardware import read_hardware
from snapkv_local.storage.new_file import write_text

FORMAT = 2  # of records; those of format 1, which do not say so, have other names for their figures


def commit(root: Path) -> str:
    """The commit of a working tree, with a + if it has changes; "unknown" outside of git."""

    def git(*args: str) -> str:
        command = ["git", *args]
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
        return result.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def package_commit() -> str:
    """As commit(), of the package that runs; "unknown" for one that was installed from a wheel.

    An environment may lie in the working tree of something else, whose commit says nothing.
    """
    root = Path(__file__).resolve().parents[2]
    return commit(root) if (root / ".git").exists() else "unknown"


def machine() -> dict[str, Any]:
    """Processor, cores, memory in bytes, and system."""
    hardware = read_hardware()
    return {
        "cpu": hardware.cpu,
        "cores": hardware.n_cores,
        "ram_total": hardware.ram_total,
        "system": platform.system(),
    }


def check_format(record: dict[str, Any], source: str) -> None:
    """Refuse a record whose names are those of another format.

    Raises:
        ConfigError: it is one; source names it.
    """
    if record.get("format") != FORMAT:
        raise ConfigError(
            source,
            "is a record of another version of snapkv-local, which has other names for its figures",
            "measure again with this version",
        )


def write(path: Path, record: dict[str, Any]) -> None:
    """Write a record; one that was there before stays whole until the new one is."""
    write_text(path, json.dumps(record, indent=1) + "\n")
