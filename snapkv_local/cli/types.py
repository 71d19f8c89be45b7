"""Types of parameters: what the command line takes for a number, a size or a file."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import click

from snapkv_local import hardware
from snapkv_local.config import N_THREADS_MAX
from snapkv_local.errors import ConfigError
from snapkv_local.plan import layers
from snapkv_local.report.units import parse_size

# of a document, in requests to a server
NAME = r"[A-Za-z0-9_.-]{1,64}"

_INT32_MAX = 2**31 - 1

_UNITS = {"": 1, "k": 1024, "m": 1024**2}


# generic from click 8.4 on, and not subscriptable before
class Size(click.ParamType):  # type: ignore[type-arg]
    """A number of tokens: 131072, or 128k for the same."""

    name = "size"
    refusal = "is not a number of tokens; write 131072 or 128k"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        match = re.fullmatch(r"([0-9]{1,20})([km]?)", str(value).strip().lower())
        if match is None or int(match[1]) == 0:
            self.fail(f"{value!r} {self.refusal}", param, ctx)
        number = int(match[1]) * _UNITS[match[2]]
        if number > _INT32_MAX:
            self.fail(f"{value!r} is more than {_INT32_MAX:,}, the most there can be", param, ctx)
        return number


class Context(Size):
    """A length of the context; 0 for the model's, as in llama.cpp."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return 0 if str(value).strip() == "0" else super().convert(value, param, ctx)


class Limit(Size):
    """A number of tokens at most: 0 for none, which is -1 on the command line, as in llama.cpp."""

    refusal = "is not a number of tokens; write one, or -1 for no limit"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return 0 if str(value).strip() == "-1" else super().convert(value, param, ctx)


# generic from click 8.4 on, and not subscriptable before
class ByteSize(click.ParamType):  # type: ignore[type-arg]
    """A number of bytes, as units.parse_size() reads it."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return value if isinstance(value, int) else parse_size(str(value))
        except ConfigError as e:
            self.fail(str(e), param, ctx)


class SizeOr(Size):
    """A number of tokens or layers, or a word."""

    def __init__(self, word: str, what: str) -> None:
        self.word = word
        self.name = f"{word}|{what}"
        self.refusal = f"is not a number of {what}; write one, or {word}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == self.word else super().convert(value, param, ctx)


class GpuLayers(click.ParamType):  # type: ignore[type-arg]
    """A number of layers, "all", or "auto": all if there is a GPU."""

    name = "auto|all|layers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in ("auto", "all") or isinstance(value, int):
            return value
        if not re.fullmatch(r"[0-9]{1,5}", str(value)):
            self.fail(f"{value!r} is not a number of layers; write one, auto or all", param, ctx)
        return int(value)


# generic from click 8.4 on, and not subscriptable before
class Shares(click.ParamType):  # type: ignore[type-arg]
    """Numbers with commas between them, one a GPU, as in llama.cpp."""

    name = "share,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        words = str(value).split(",")
        right = all(re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", word.strip()) for word in words)
        shares = tuple(float(word) for word in words) if right else ()
        if not any(shares):
            self.fail(f"{value!r} is not a list of shares; write one a GPU, as in 3,1", param, ctx)
        return shares


# generic from click 8.4 on, and not subscriptable before
class Threads(click.ParamType):  # type: ignore[type-arg]
    """A number of threads. More than there are cores wait for each other: a warning says so."""

    name = "threads"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not re.fullmatch(r"[0-9]{1,5}", str(value)) or not 1 <= int(value) <= N_THREADS_MAX:
            cure = f"write one from 1 to {N_THREADS_MAX}, or leave it out for all cores"
            self.fail(f"{value!r} is not a number of threads; {cure}", param, ctx)
        if int(value) > (n_cores := hardware.n_cores()):
            click.echo(
                f"Warning: --threads {value} on {n_cores} cores: threads will wait for each other",
                err=True,
            )
        return int(value)


class Number(click.FloatRange):
    """A number within bounds; without them, any but infinity and what is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a number; write one, as in 0.7", param, ctx)
        return number


# generic from click 8.4 on, and not subscriptable before
class NamedFile(click.ParamType):  # type: ignore[type-arg]
    """ID=PATH, or PATH with the file's name, without what follows its last dot, as ID."""

    name = "[id=]path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        id_, equals, rest = str(value).partition("=")
        path = Path(rest if equals and not Path(value).is_file() else value)
        if path == Path(value):
            id_ = path.stem
        if not re.fullmatch(NAME, id_):
            cure = "give one before it, as in book=PATH"
            self.fail(f"{id_!r} is not an id of letters, digits, _, - and dots: {cure}", param, ctx)
        return id_, path


SIZE = Size()
KV_TYPES = tuple(layers.KV_TYPES)


# generic from click 8.4 on, and not subscriptable before
class List(click.ParamType):  # type: ignore[type-arg]
    """Values of another type with commas between them, each once."""

    def __init__(self, item: Any) -> None:
        self.item = item
        self.name = f"{item.name},..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        words = [word.strip() for word in str(value).split(",")]
        return tuple(dict.fromkeys(self.item.convert(word, param, ctx) for word in words))


class KvType(click.Choice[str]):
    """A type of the KV cache."""

    name = "type"

    def __init__(self) -> None:
        super().__init__(KV_TYPES)
