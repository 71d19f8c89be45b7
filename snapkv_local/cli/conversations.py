"""How many conversations a server holds, and where others rest: options, and what they come to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from snapkv_local import hardware, memory
from snapkv_local.cli.model import together
from snapkv_local.cli.types import ByteSize
from snapkv_local.config import N_PARALLEL_MAX, SnapKVConfig
from snapkv_local.errors import ModelFileError, UnsupportedModelError
from snapkv_local.llama.load_options import LoadOptions
from snapkv_local.report.units import size

if TYPE_CHECKING:
    from snapkv_local.server.resting import Resting

_MOST = 8  # conversations, where nobody says how many
_MOST_RAM = 8 << 30  # bytes, where nobody says how many


# generic from click 8.4 on, and not subscriptable before
class Parallel(click.ParamType):  # type: ignore[type-arg]
    """A number of conversations, or "auto"."""

    name = "auto|number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in ("auto", "-1"):
            return "auto"
        if not str(value).isdecimal() or not 1 <= int(value) <= N_PARALLEL_MAX:
            self.fail(f"{value!r}: write a number from 1 to {N_PARALLEL_MAX}, or auto", param, ctx)
        return int(value)


class RamSize(ByteSize):
    """A number of bytes; a bare number is one of MiB, as in llama.cpp."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if str(value).isdecimal():
            return int(value) << 20
        return super().convert(value, param, ctx)


conversation_options = together(
    click.option(
        "-np",
        "--parallel",
        "parallel",
        type=Parallel(),
        default="auto",
        show_default=True,
        help="How many conversations are held and answered at once; auto takes as many as fit, up to "
        f"{_MOST}.",
    ),
    click.option(
        "-cram",
        "--cache-ram",
        "cache_ram",
        type=RamSize(),
        help="The most host memory of conversations that rest, in MiB or as 2GiB; 0 for none.  [default: "
        "a quarter of what is free, up to 8GiB]",
    ),
    click.option(
        "--cache-dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="A folder for files of conversations that do not fit there; they outlive the server.",
    ),
    click.option(
        "--cache-disk",
        type=ByteSize(),
        default="16GiB",
        show_default=True,
        help="The most bytes of these files.",
    ),
)


def how_many(
    parallel: int | str, path: Path, config: SnapKVConfig | None, loading: LoadOptions
) -> int:
    """Conversations that the server holds; says on stderr what each of several takes.

    Raises:
        click.UsageError: several with the full cache.
    """
    if config is None:
        if parallel not in ("auto", 1):
            raise click.UsageError("--full holds one conversation: leave out --parallel")
        return 1
    if parallel != "auto":
        return int(parallel)
    try:
        n, each = _that_fit(path, config, loading)
    except (ModelFileError, UnsupportedModelError) as e:
        click.echo(f"One conversation at a time, as nothing says how many fit: {e}", err=True)
        return 1
    click.echo(f"{n} conversations at once, of {size(each)} each (--parallel)", err=True)
    return n


def resting(cache_ram: int | None, folder: Path | None, cache_disk: int) -> Resting:
    """Where conversations rest that lose their place."""
    from snapkv_local.server.resting import Resting

    if cache_ram is None:
        cache_ram = min(_MOST_RAM, (hardware.read_hardware().ram_available or 0) // 4)
    return Resting(cache_ram, folder, cache_disk)


def _that_fit(path: Path, config: SnapKVConfig, loading: LoadOptions) -> tuple[int, int]:
    from snapkv_local.cli.plan import can_offload, take_device, take_place
    from snapkv_local.llama.load_options import KV_TYPE, split_kv_type
    from snapkv_local.plan import devices, fit
    from snapkv_local.plan.model import read_model

    planned = read_model(path)
    where = take_device(devices, None, None, loading.gpu_layers)
    place = take_place(where, loading.gpu_layers, can_offload())
    available = where.usable
    if not place.gpu:
        machine = hardware.read_hardware()
        available = machine.ram_available or machine.ram_total
        limited = memory.left()
        if limited is not None:
            available = max(0, min(available or limited, limited - memory.ENGINE))
    kv_type: Any = split_kv_type(loading.kv_type or KV_TYPE)[0]
    drafts = loading.drafts
    draft = None if drafts is None or drafts.model is None else read_model(drafts.model)
    heads = drafts is not None and drafts.heads
    lookup = drafts is not None and drafts.model is None and not heads
    task = fit.Task(planned, config, kv_type, place, available, draft, lookup, heads)
    ctx = loading.ctx or planned.shape.n_ctx_train
    return fit.conversations(task, max(1, ctx - config.decode_cells), _MOST)
