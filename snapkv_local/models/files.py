"""The files of a model, and whether they are whole."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from snapkv_local import foreign
from snapkv_local.errors import ModelFileError
from snapkv_local.models.gguf_header import GGUFHeader, read_header, truncated

# called with a file's name, and bytes done and in all, None where that is not known
Downloaded = Callable[[str, int, int | None], object]

_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


def check(path: Path) -> GGUFHeader:
    """Refuse a file that the native loader would fail on, or worse, before it sees it.

    Args:
        path: a GGUF file; of a model in several files, the first.

    Returns:
        The file's header.

    Raises:
        ModelFileError: missing, a folder, not GGUF, truncated, or not the first of a split model.
        OutOfMemoryError: no address space to read its header.
    """
    first, *rest = file_names(path.name)
    if path.name != first:
        raise ModelFileError(
            str(path), f"is not the first file of a model in {len(rest) + 1}", f"give {first}"
        )
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ModelFileError(
            repr(str(path)),
            "is a path with bytes that are not UTF-8, which llama.cpp does not open",
            "rename it",
        ) from None
    header = _check_file(path)
    for name in rest:
        _check_file(path.with_name(name))
    return header


def files(path: Path) -> list[Path]:
    """All files of a model, in order, from the path of one of them."""
    return [path.with_name(name) for name in file_names(path.name)]


def file_names(name: str) -> list[str]:
    """The names of all files of a model, in order, from the name of one of them."""
    split = _SPLIT.search(name)
    if split is None:
        return [name]
    stem, n_files = name[: split.start()], split[2]
    return [f"{stem}-{i:05}-of-{n_files}.gguf" for i in range(1, int(n_files) + 1)]


def _check_file(path: Path) -> GGUFHeader:
    if path.is_dir():
        raise ModelFileError(str(path), "is a folder", "give the .gguf file in it")
    if not path.exists():
        raise ModelFileError(
            str(path), "does not exist", "check the path; `demo` is a model to try"
        )
    try:
        header = read_header(path)
    except OSError as e:
        if foreign.is_out_of_memory(e):
            raise foreign.out_of_memory(str(path)) from e
        raise ModelFileError(
            str(path), f"cannot be read ({e.strerror})", "check its permissions"
        ) from e
    size = path.stat().st_size
    for tensor in header.tensors:
        if tensor.offset + tensor.n_bytes > size:
            raise truncated(
                path, f"at byte {size:,}, within or before the weights of {tensor.name}"
            )
    return header
