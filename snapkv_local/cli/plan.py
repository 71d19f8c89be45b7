"""`snapkv-local plan`: does a model with a long prompt fit, and what would?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from snapkv_local import hardware
from snapkv_local.cli.console import result_console
from snapkv_local.cli.model import model_choice
from snapkv_local.cli.options import (
    config_options,
    gpu_layers_option,
    json_option,
    take_config,
    verbose_option,
)
from snapkv_local.cli.progress import Lines, find_model
from snapkv_local.cli.types import KV_TYPES, Context, Threads
from snapkv_local.config import SnapKVConfig
from snapkv_local.errors import ConfigError
from snapkv_local.models.resolve import on_this_machine
from snapkv_local.report.units import parse_size, size

if TYPE_CHECKING:
    from snapkv_local.plan.devices import Device
    from snapkv_local.plan.fit import Task


@click.command()
@model_choice()
@click.option(
    "-c",
    "--ctx-size",
    "--ctx",
    "ctx",
    type=Context(),
    help="The length of prompt and answer together, in tokens.  [default: the model's]",
)
@config_options
@click.option(
    "--kv-type",
    type=click.Choice(KV_TYPES),
    default="f16",
    show_default=True,
    help="The type of K and V in the compact cache; plain llama.cpp is shown with all types.",
)
@click.option(
    "--memory", help="The memory of the GPU, such as 8GiB; with --gpu-layers 0, that of the host."
)
@click.option(
    "--device", help='A device that is known by name, such as "RTX 4060".  [default: this machine]'
)
@gpu_layers_option
@click.option(
    "-md",
    "--model-draft",
    "--spec-draft-model",
    "model_draft",
    metavar="MODEL",
    help="A smaller model that is loaded, too, to guess tokens.",
)
@click.option(
    "--mtp",
    "heads",
    is_flag=True,
    help="The prediction heads that MODEL has are loaded, to guess tokens.",
)
@click.option(
    "--measure", is_flag=True, help="Run the prompt here, and compare what it takes with the plan."
)
@click.option(
    "-t",
    "--threads",
    type=Threads(),
    help="The number of threads for --measure.  [default: all cores]",
)
@verbose_option
@json_option
def plan(
    model: str,
    ctx: int | None,
    kv_type: Any,
    memory: str | None,
    device: str | None,
    gpu_layers: Any,
    model_draft: str | None,
    heads: bool,
    measure: bool,
    threads: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Show how much memory MODEL takes with a long prompt.

    It shows each part, and whether all of it fits. It reads only the file's metadata. With --measure it
    also loads the model and runs the prompt, and ends with exit code 1 if a part of more than 64 MiB is
    off by more than 5 %.
    """
    from snapkv_local.plan import devices, fit
    from snapkv_local.plan.model import read_model

    if memory is not None and device is not None:
        raise click.UsageError("--memory and --device both say how much there is: give one")
    if measure and (memory is not None or device is not None):
        raise click.UsageError("--measure runs on this machine: leave out --memory and --device")
    if measure and (model_draft is not None or heads):
        raise click.UsageError("--measure runs the model alone: leave out --model-draft and --mtp")
    if model_draft is not None and heads:
        raise click.UsageError("--model-draft and --mtp both guess: give one of them")
    config = SnapKVConfig(**take_config(options))
    planned = read_model(locate(model))
    ctx = ctx or planned.shape.n_ctx_train
    planned.shape.check_positions(f"ctx {ctx}", ctx, "give --ctx {most} or less")
    n_prompt = ctx - config.decode_cells
    if n_prompt < 1:
        raise ConfigError(
            f"ctx {ctx}", f"leaves no prompt beside room for {config.decode_cells}", "raise --ctx"
        )

    where = take_device(devices, memory, device, gpu_layers)
    offloads = can_offload() if measure else True
    place = take_place(where, gpu_layers, offloads)
    available = where.usable
    if where.is_gpu and not place.gpu and where.source == "this machine":
        machine = hardware.read_hardware()
        available = machine.ram_available or machine.ram_total
    draft = None if model_draft is None else read_model(locate(model_draft))
    if heads and planned.bytes_heads == 0:
        raise ConfigError("--mtp", f"{planned.path.name} has no prediction heads", "leave it out")
    task = fit.Task(planned, config, kv_type, place, available, draft, heads=heads)
    if measure:
        compare(task, n_prompt, threads or hardware.n_cores(), as_json)
        return
    report(task, where, ctx, n_prompt, as_json)


def locate(model: str) -> Path:
    """As models.resolve(), and without a check of the weights: the metadata will do."""
    return find_model(model) if model.startswith("hf:") else on_this_machine(model)


def take_device(devices: Any, memory: str | None, device: str | None, gpu_layers: Any) -> Device:
    """What --memory or --device name, or this machine."""
    if device is not None:
        found: Device = devices.find(device)
        return found
    if memory is None:
        here: Device = devices.this_machine()
        return here
    n_bytes = parse_size(memory)
    kind = "cpu" if gpu_layers == 0 else "cuda"
    given: Device = devices.Device(memory, kind, n_bytes, n_bytes, "--memory")
    return given


def take_place(device: Device, gpu_layers: Any, offloads: bool) -> Any:
    """Where layers are computed on a device."""
    from snapkv_local.plan.layers import CPU, CUDA_CONTEXT, Place

    if not device.is_gpu or gpu_layers == 0 or not offloads:
        return CPU
    n = None if gpu_layers in ("auto", "all") else gpu_layers
    context = 0 if device.kind == "metal" else CUDA_CONTEXT
    return Place(True, n, context, device.kind)


def can_offload() -> bool:
    """Whether the native library can use a GPU here."""
    from snapkv_local.native import devices as backends

    return any(device.kind in ("gpu", "igpu") for device in backends.devices())


def report(task: Task, device: Device, ctx: int, n_prompt: int, as_json: bool) -> None:
    """Print the plan."""
    from snapkv_local.plan import fit
    from snapkv_local.plan.terminal import advice, parts_table

    ways = task.ways()
    estimates = [way(n_prompt) for way in ways.values()]
    shape = task.model.shape
    # no longer than the model was trained for, unless --ctx asks for more
    is_asked = ctx > shape.n_ctx_train
    most = fit.MAX_PROMPT if is_asked else max(shape.n_ctx_train - task.config.decode_cells, 0)
    largest = {name: fit.largest_prompt(task, way, most) for name, way in ways.items()}
    by_memory = {
        name: fit.largest_prompt(task, way) if largest[name] == most else largest[name]
        for name, way in ways.items()
    }
    ours = estimates[-1]
    cures = [] if task.fits(ours) else fit.changes(task, n_prompt)
    warnings = []
    if is_asked:
        warnings.append(
            f"the model was trained for {shape.n_ctx_train:,} tokens, and --ctx is {ctx:,}: "
            "answers may be wrong, whatever fits"
        )
    if as_json:
        click.echo(
            json.dumps(
                {
                    "model": str(task.model.path),
                    "name": shape.name,
                    "ctx": ctx,
                    "n_prompt": n_prompt,
                    "n_ctx_train": shape.n_ctx_train,
                    "kv_type": task.kv_type,
                    "device": device.to_dict(),
                    "memory": task.memory,
                    "gpu": task.place.gpu,
                    "ways": [
                        {
                            **estimate.to_dict(),
                            "fits": task.fits(estimate),
                            "largest_prompt": largest[name],
                            "largest_prompt_by_memory": by_memory[name],
                        }
                        for name, estimate in zip(ways, estimates, strict=True)
                    ],
                    "changes": [change.to_dict() for change in cures],
                    "warnings": warnings,
                }
            )
        )
        return
    console = result_console()
    where = device.name if device.source == "--memory" else f"{device.name} ({device.source})"
    of = "device memory" if task.place.gpu else "memory"
    console.print(
        f"{shape.name or task.model.path.name}, prompt of {n_prompt:,} tokens, "
        f"and room for {task.config.decode_cells:,} new ones"
    )
    console.print(f"{where}: {size(task.memory)} of {of}\n", highlight=False)
    console.print(parts_table(task, estimates, largest, by_memory))
    if largest != by_memory:
        console.print(
            f"The model was trained for {shape.n_ctx_train:,} tokens, prompt and answer: the largest "
            "prompt is not longer, though memory holds more.",
            highlight=False,
        )
    for warning in warnings:
        click.echo(f"Warning: {warning}", err=True)
    if not task.fits(ours):
        for line in advice(task, ours, cures, largest["ours auto"]):
            console.print(line, highlight=False)


def compare(task: Task, n_prompt: int, n_threads: int, as_json: bool) -> None:
    """Run, print predicted beside measured, and leave with 1 if a large part is off."""
    from snapkv_local.plan.measure import measure
    from snapkv_local.plan.terminal import measured_table

    n_layers = 0 if not task.place.gpu else task.place.n_gpu_layers
    n_gpu_layers = -1 if n_layers is None else n_layers
    last = [-1]
    is_terminal = sys.stderr.isatty()

    with Lines("loading the model") as lines:

        def progress(done: int, total: int) -> None:
            lines.update(f"prefill of {n_prompt:,} tokens", done, total, f"{done / total:.0%}")
            share = 100 * done // total
            if is_terminal and share >= last[0] + 5:
                last[0] = share
                click.echo(f"\rprefill of {n_prompt:,} tokens: {share:3d} %", nl=False, err=True)

        result = measure(task, n_prompt, n_gpu_layers, n_threads, progress)
    if is_terminal:
        click.echo(err=True)
    if as_json:
        click.echo(json.dumps({"model": str(task.model.path), **result.to_dict()}))
    else:
        result_console().print(measured_table(result))
        click.echo(
            f"layers at once: predicted {result.predicted_group}, "
            f"taken {result.stats['layer_group']}; tokens at once {result.stats['n_ubatch']}"
        )
    if result.misses:
        raise click.exceptions.Exit(1)
