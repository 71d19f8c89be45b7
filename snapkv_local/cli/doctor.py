"""`snapkv-local doctor`: what is installed and on the machine, and whether it takes a model."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from snapkv_local import foreign, hardware
from snapkv_local.cli.console import result_console
from snapkv_local.cli.model import model_choice
from snapkv_local.cli.options import json_option
from snapkv_local.cli.progress import find_model
from snapkv_local.config import SnapKVConfig
from snapkv_local.models.gguf_shape import read_shape
from snapkv_local.native import library
from snapkv_local.report.units import size


@click.command()
@model_choice(required=False)
@json_option
def doctor(model: str | None, as_json: bool) -> None:
    """Show versions and devices, and whether MODEL can be compressed.

    Without MODEL it shows the versions, the build, and the devices with their backends and ops.
    """
    report = examine(find_model(model) if model is not None else None)
    if as_json:
        click.echo(json.dumps(report))
    else:
        show(report)


def examine(path: Path | None) -> dict[str, Any]:
    """All that doctor reports, by section.

    Args:
        path: of a GGUF file, if one is to be examined.
    """
    # only now: it loads the native library
    from snapkv_local.native import api, devices  # isort: skip

    import llama_cpp

    build = devices.LIB_DIR / "build.json"
    report: dict[str, Any] = {
        "versions": {
            "snapkv-local": version("snapkv-local"),
            "llama-cpp-python": version("llama-cpp-python"),
            "llama-cpp-python needed": library.LLAMA_CPP_PYTHON,
            "python": platform.python_version(),
        },
        "build": {
            "library": str(devices.LIB_DIR),
            **(json.loads(build.read_text()) if build.exists() else {}),
            "system": llama_cpp.llama_print_system_info().decode().strip(),
        },
        "machine": {"system": platform.platform(), **hardware.read_hardware().to_dict()},
        "devices": [
            {
                **device.to_dict(),
                **state(
                    api.llama_snapkv_proven(device.backend.encode()),
                    api.llama_snapkv_has_fused_ops(device.name.encode()),
                ),
            }
            for device in devices.devices()
        ],
    }
    if path is not None:
        report["model"] = {"file": str(path), **read_shape(path).to_dict(), **support(path)}
    return report


def state(proven: bool, has_fused: bool) -> dict[str, Any]:
    """What scores and evicts on a device, and what becomes of a model on it if its backend is unproven."""
    found: dict[str, Any] = {"ops": "fused ops" if has_fused else "ggml's ops", "proven": proven}
    if proven:
        return found
    tries = os.environ.get(library.ENV_UNPROVEN) == "1"
    what = "tried all the same" if tries else f"refused; {library.ENV_UNPROVEN}=1 tries it"
    return {**found, "warning": f"nobody has proven that results are right: {what}"}


def support(path: Path) -> dict[str, Any]:
    """Whether the engine takes the model, and the reason if not."""
    from snapkv_local.native.support import make_params, supported  # isort: skip

    from llama_cpp import _internals, llama_cpp

    # sets the level of llama.cpp's log: a refusal is a result here and needs no lines on stderr
    from llama_cpp._logger import set_verbose

    from snapkv_local.native import voices

    set_verbose(False)
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    with voices.heard() as said:
        try:
            model = _internals.LlamaModel(path_model=str(path), params=params, verbose=False)
        except Exception as e:
            raise foreign.from_load(e, str(path), said.reason) from e
    context_params = llama_cpp.llama_context_default_params()
    reason = supported(model.model, context_params, make_params(SnapKVConfig()))
    model.close()
    return {"supported": reason is None, "reason": reason}


def show(report: dict[str, Any]) -> None:
    """Print a report as tables."""
    console = result_console()
    for title, section in report.items():
        table = Table(
            title=title, title_justify="left", show_header=False, box=None, padding=(0, 2)
        )
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")  # a path is never cut
        for row in section if isinstance(section, list) else [section]:
            for key, value in row.items():
                table.add_row(key, readable(key, value))
        console.print(table)
        console.print()


def readable(key: str, value: Any) -> str:
    """A value for people: bytes with units, equal numbers of all layers once, lists as words."""
    if isinstance(value, int) and key.startswith(("ram_", "memory_")):
        return size(value)
    if isinstance(value, tuple):
        return str(value[0]) if len(set(value)) == 1 else ", ".join(map(str, value))
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)
