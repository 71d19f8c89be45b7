"""How a command ends: results, or one line on stderr, and an exit code. Never a traceback."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import click

from snapkv_local import foreign, process
from snapkv_local.errors import SnapKVError

INTERRUPTED = 130
READER_GONE = 141  # what a shell says of a program that SIGPIPE has ended


class ReaderGone(Exception):
    """Nobody reads stdout any more, and has read what was wanted."""


@contextlib.contextmanager
def readers() -> Iterator[None]:
    """While open, a broken pipe is not for click, which would end the process itself.

    Raises:
        ReaderGone: instead of OSError.
    """
    try:
        yield
    except OSError as e:
        if not _is_broken_pipe(e):
            raise
        raise ReaderGone from e
    except SystemExit as e:
        if isinstance(e.__context__, BrokenPipeError):  # of rich
            raise ReaderGone from e
        raise


def run(command: Callable[[], Any]) -> int:
    """The exit code of a command, whose errors are told."""
    try:
        result = command()
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except SystemExit:
        raise
    except BaseException as e:
        return tell(e)


def tell(error: BaseException) -> int:
    """Say what went wrong, on stderr; the exit code."""
    code, line = verdict(error)
    with contextlib.suppress(OSError, ValueError):
        if isinstance(error, click.ClickException):
            error.show()
        elif line:
            click.echo(line, err=True)
    with contextlib.suppress(ValueError):
        try:
            sys.stdout.flush()
        except OSError:
            _give_up_stdout()
    return code


def verdict(error: BaseException) -> tuple[int, str]:
    """Exit code, and the line to print, if any."""
    if isinstance(error, click.ClickException):
        return error.exit_code, error.format_message()
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return INTERRUPTED, "Interrupted"
    if isinstance(error, ReaderGone) or _is_broken_pipe(error):
        return READER_GONE, ""
    if isinstance(error, SnapKVError):
        return 1, f"Error: {error.says('cli')}"
    if foreign.is_out_of_memory(error):
        return 1, f"Error: {foreign.out_of_memory('memory', _short(error)).says('cli')}"
    if isinstance(error, OSError):
        return 1, f"Error: {foreign.from_system(error).says('cli')}"
    if isinstance(error, ValueError):  # how llama_cpp refuses input
        return 1, f"Error: {_short(error)}"
    return 1, _fault(error)


def _is_broken_pipe(error: BaseException) -> bool:
    """If what reads stdout has gone. Windows says then that the argument of a write is invalid."""
    if isinstance(error, BrokenPipeError):
        return True
    says_so = isinstance(error, OSError) and error.errno == errno.EINVAL and error.filename is None
    return sys.platform == "win32" and says_so and _is_pipe(sys.stdout)


def _is_pipe(stream: TextIO) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
    return False


def _short(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _fault(error: BaseException) -> str:
    """What nobody foresaw: where it was, and with --verbose the whole traceback."""
    if process.log is not None:
        return "".join(traceback.format_exception(error)).rstrip()
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(last.filename).name}:{last.lineno}"
    return (
        f"Error: {type(error).__name__} at {where} ({_short(error)}): this is a fault of "
        "snapkv-local, please report it; --verbose, where the command has it, says more"
    )


def open_streams() -> None:
    """Give closed standard streams a place: files that are opened later would get their descriptors.

    Raises:
        SnapKVError: stdout is closed, and what a command has to say would be lost.
    """
    closed = [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]
    for name in closed:
        # Python opens the lowest descriptor that is free, which is this stream's
        mode = "r" if name == "stdin" else "w"
        setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
    if "stdout" in closed:
        raise SnapKVError("stdout", "is closed", f"leave it open, or redirect it to {os.devnull}")
    # a terminal may know fewer characters than a model
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    if sys.platform == "win32" and "PYTHONIOENCODING" not in os.environ:
        _write_utf8(sys.stdout, sys.stderr)


def _write_utf8(*streams: TextIO) -> None:
    """What goes into files and pipes is what is read from them: Windows would have a code page there."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper) and not stream.isatty():
            stream.reconfigure(encoding="utf-8")


def _give_up_stdout() -> None:
    """What is still to be written is dropped: Python would try again at its end, and complain."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
