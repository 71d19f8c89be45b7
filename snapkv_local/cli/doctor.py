"""`snapkv-local doctor`: what is installed and on the machine, and whether it takes a model."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from snapkv_local import foreign, hardware
from snapkv_local.cli.console import result_console
from snapkv_local.cli.model import model_choice
from snapkv_local.cli.options import json_option
from snapkv_local.cli.progress import find_model
from snapkv_local.config import SnapKVConfig
from snapkv_local.models.gguf_shape import read_shape
from snapkv_local.models.resolve import needle_model
from snapkv_local.native import library
from snapkv_local.report.units import size
from snapkv_local.storage.new_file import write_text

if TYPE_CHECKING:
    from snapkv_local.native.register import Backend


@click.command()
@model_choice(required=False)
@click.option(
    "--prove",
    is_flag=True,
    help="Compute small models on each device and compare them with what llama.cpp computes there; "
    "takes some minutes, and writes a file to send to the project.",
)
@click.option(
    "--device", "names", multiple=True, help="With --prove: this device only; may be repeated."
)
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default="snapkv-proof.json",
    show_default=True,
    help="With --prove: the file to write.",
)
@json_option
def doctor(
    model: str | None, prove: bool, names: tuple[str, ...], out: Path, as_json: bool
) -> None:
    """Show versions and devices, and whether MODEL can be compressed.

    Without MODEL it shows the versions, the build, and the devices with their backends and ops.
    """
    if prove:
        if model is not None:
            raise click.UsageError("--prove computes models of its own: leave MODEL out")
        prove_devices(names, out, as_json)
        return
    if names:
        raise click.UsageError("--device is for --prove")
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
    from snapkv_local.native import api, binding, devices, register  # isort: skip

    import llama_cpp

    report: dict[str, Any] = {
        "versions": {
            "snapkv-local": version("snapkv-local"),
            "llama-cpp-python": version("llama-cpp-python"),
            "llama-cpp-python needed": library.LLAMA_CPP_PYTHON,
            "python": platform.python_version(),
        },
        "build": {
            "library": str(binding.LIB_DIR),
            **binding.build(),
            "system": llama_cpp.llama_print_system_info().decode().strip(),
        },
        "machine": {"system": platform.platform(), **hardware.read_hardware().to_dict()},
        "devices": [
            {
                **device.to_dict(),
                **state(
                    register.find(device.backend),
                    api.llama_snapkv_has_fused_ops(device.name.encode()),
                ),
            }
            for device in devices.devices()
        ],
    }
    if path is not None:
        report["model"] = {"file": str(path), **read_shape(path).to_dict(), **support(path)}
    return report


def state(line: Backend | None, has_fused: bool) -> dict[str, Any]:
    """What is known of a device, what scores and evicts there, and what becomes of models there.

    Args:
        line: of its backend in the register, if it has one.
        has_fused: the device has fused ops.
    """
    found: dict[str, Any] = {
        "ops": "fused ops" if has_fused else "ggml's ops",
        "proven": line is not None and line.proven,
        "known": line.evidence if line else "its backend is in no line of the register",
    }
    if line is not None and line.proven:
        return {**found, "state": line.state}
    tries = os.environ.get(library.ENV_UNPROVEN, "")
    if line is not None and line.checked and tries != "2":
        return {**found, "state": line.state}
    what = {
        "1": "tried where a small model is exact",
        "2": "tried whatever comes out",
    }.get(tries, f"refused; {library.ENV_UNPROVEN}=1 tries it where a small model is exact")
    return {**found, "warning": f"nobody has proven that results are right: {what}"}


def prove_devices(names: tuple[str, ...], out: Path, as_json: bool) -> None:
    """`doctor --prove`.

    Args:
        names: of devices; empty for all.
        out: the file to write.
        as_json: print the record, too.
    """
    from snapkv_local.bench import proof
    from snapkv_local.bench.runner import Machine

    machine = Machine.describe()
    there = [device["name"] for device in machine.devices]
    for name in names:
        if name not in there:
            raise click.UsageError(f"--device {name}: there are {', '.join(there)}")
    record = proof.make_record(
        machine, names, needle_model(), lambda line: click.echo(line, err=True)
    )
    write_text(out, json.dumps(record, indent=1) + "\n")
    if as_json:
        click.echo(json.dumps(record))
    else:
        show_proof(record, out)


def show_proof(record: dict[str, Any], out: Path) -> None:
    """Print what came out, and what to do with the file."""
    console = result_console()
    table = Table("device", "exact", "ops", box=None, padding=(0, 2), title_justify="left")
    for device in record["devices"]:
        n = len(device["cases"])
        failed = f", {len(device['failures'])} failed" if device["failures"] else ""
        exact = (
            f"yes, difference 0 in {n} cases"
            if device["exact"]
            else f"no: difference {device['max_diff']} in {n} cases{failed}"
        )
        ops = "ggml's"
        if device["max_diff_ops"] is not None:
            agree = "agree" if device["ops_agree"] else "DIFFER"
            ops = f"fused, votes {agree} with ggml's ({device['max_diff_ops']:.1g})"
        table.add_row(f"{device['name']} ({device['description']})", exact, ops)
    console.print(table)
    console.print()
    for name, what in (("full", "full cache"), ("snapkv", "compressed")):
        figures = record["run"][name]
        console.print(
            f"{what}: {figures['error']}"
            if "error" in figures
            else f"{what}: {record['run']['n_prompt']:,} tokens at "
            f"{figures['prefill_tokens_per_second']:,.0f} tokens/s, then "
            f"{figures['decode_tokens_per_second'][0]:,.0f} tokens/s"
        )
    console.print()
    console.print(
        f"{out} has all of it, and nothing of yours but the names of the hardware and the system. "
        "Please send it to the project, whatever came out: a device whose record shows no "
        "difference can be called proven.",
        soft_wrap=True,
    )


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
