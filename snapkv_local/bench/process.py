"""Runs the worker in a process of its own, so that peak memory is the run's own."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

from snapkv_local.process import of_module

_TAIL = 2000  # characters of a failed run's messages that are kept


def work(
    verb: str,
    *given: dict[str, Any],
    environment: dict[str, str] | None = None,
    timeout: float | None = None,
) -> tuple[dict[str, Any] | None, str]:
    """What the worker found, or None and why it did not.

    Args:
        verb: of worker.py.
        given: its arguments.
        environment: of the process; this one's if None.
        timeout: seconds after which it is stopped; None for no limit.
    """
    environment = {
        **(os.environ if environment is None else environment),
        # CUDA then numbers its devices as NVML does
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    command = [*of_module("snapkv_local.bench.worker"), verb, *map(json.dumps, given)]
    try:
        result = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="replace",  # of llama.cpp's log
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return None, f"stopped after {timeout:.0f} s"
    except OSError as e:
        return None, str(e)
    if result.returncode != 0:
        said = result.stderr[-_TAIL:].strip()
        return None, f"ended with {result.returncode}: {said}"
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found, ""
