"""GGUF files from the Hugging Face hub, by name."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from snapkv_local.errors import ModelFileError
from snapkv_local.models import files as model_files

PREFIX = "hf:"
DEFAULT_QUANT = "Q4_K_M"

StrPath = str | os.PathLike[str]

# GGUF files that lie beside models: for images, and from quantization
_NO_MODEL = re.compile(r"mmproj|imatrix", re.IGNORECASE)
_SECONDS_TO_ANSWER = 10.0


def resolve(model: str, progress: model_files.Downloaded | None = None) -> Path:
    """The local file of hf:OWNER/REPO or hf:OWNER/REPO:WHAT, downloaded unless it is cached.

    Args:
        model: WHAT is as in download().
        progress: as in download().

    Raises:
        ModelFileError: as download().
    """
    repo_id, _, what = model.removeprefix(PREFIX).partition(":")
    return download(repo_id, what or None, progress=progress)


def download(
    repo_id: str,
    what: str | None = None,
    *,
    additional_files: Sequence[str] = (),
    cache_dir: StrPath | None = None,
    local_dir: StrPath | None = None,
    progress: model_files.Downloaded | None = None,
) -> Path:
    """A model's GGUF file, out of huggingface_hub's cache if it is there.

    A model in several files is downloaded whole. Where the hub cannot be reached, what was
    downloaded before is used. The environment variables of huggingface_hub hold: HF_TOKEN, HF_HOME,
    HF_HUB_OFFLINE, HF_ENDPOINT and others.

    Args:
        repo_id: OWNER/REPO.
        what: a file's name, a pattern such as *q8_0.gguf, or a quantization such as Q8_0; None
            takes Q4_K_M, or else the only model.
        additional_files: names or patterns of other files to download.
        cache_dir: a cache instead of huggingface_hub's.
        local_dir: a folder that gets the files under their own names, instead of a cache.
        progress: called while a file is downloaded, instead of huggingface_hub's bar; releases of
            huggingface_hub that do not allow it call nothing.

    Returns:
        The model's file; of several, the first.

    Raises:
        ModelFileError: the package huggingface-hub is missing; repo_id is malformed; there is no
            such repository or file, or several fit; the hub wants a token, or cannot be reached and
            the model is not cached.
    """
    try:
        from huggingface_hub import HfApi, hf_hub_download
    except ModuleNotFoundError as e:
        raise ModelFileError(
            PREFIX + repo_id,
            "the package huggingface-hub is not installed",
            'pip install "snapkv-local[hub]"',
        ) from e

    cache = None if cache_dir is None else Path(cache_dir)
    folder = None if local_dir is None else Path(local_dir)
    unreachable = False
    with _hub_errors(repo_id):
        try:
            # one request; list_repo_files() goes on trying for half a minute without a network
            info = HfApi().model_info(repo_id, timeout=_SECONDS_TO_ANSWER)
            names = [file.rfilename for file in info.siblings or []]
        except Exception as e:
            unreachable = _is_unreachable(e)
            names = _downloaded(repo_id, cache, folder) if unreachable else []
            if not names:
                raise
    source = "the hub cannot be reached, and what is cached" if unreachable else "the repository"
    chosen = select(repo_id, names, what, source)
    for pattern in additional_files:
        chosen += _matching(repo_id, names, pattern, source)
    paths = []
    for name in chosen:
        with _hub_errors(repo_id):
            path = hf_hub_download(
                repo_id,
                name,
                cache_dir=cache,
                local_dir=folder,
                local_files_only=unreachable,
                **_bar(hf_hub_download, name, progress),
            )
        paths.append(Path(path))
    return paths[0]


def select(
    repo_id: str, names: Iterable[str], what: str | None, source: str = "the repository"
) -> list[str]:
    """The files of the one model that is meant.

    Args:
        repo_id: for errors.
        names: all files of the repository.
        what: as in download().
        source: of the names, for errors.

    Returns:
        The model's file, or all files of a split model in their order.

    Raises:
        ModelFileError: no model fits, several do, or files of it are missing.
    """
    present = set(names)
    choices = {tuple(model_files.file_names(n)): None for n in sorted(present) if _is_model(n)}
    if what is None:
        found = [files for files in choices if _has_quant(files[0], DEFAULT_QUANT)]
        found = found or list(choices)
    else:
        found = [files for files in choices if any(_is_named(name, what) for name in files)]
        found = found or [files for files in choices if _has_quant(files[0], what)]
    if len(found) == 1:
        missing = [name for name in found[0] if name not in present]
        if missing:
            raise ModelFileError(
                _subject(repo_id, what),
                f"{source} lacks {', '.join(missing)}",
                "the model needs all of its files: choose another, or try again later",
            )
        return list(found[0])
    if not choices:
        raise ModelFileError(
            _subject(repo_id, what),
            f"{source} has no GGUF model",
            "look for a repository whose name ends in -GGUF",
        )
    problem = f"{source} has {'no such model' if not found else f'{len(found)} that fit'}"
    shown = "\n  ".join(f"{PREFIX}{repo_id}:{files[0]}" for files in found or choices)
    raise ModelFileError(_subject(repo_id, what), problem, f"choose one:\n  {shown}")


def _bar(
    download: Callable[..., str], file: str, progress: model_files.Downloaded | None
) -> dict[str, Any]:
    """The argument of hf_hub_download() that makes it call `progress`."""
    if progress is None or "tqdm_class" not in inspect.signature(download).parameters:
        return {}
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    report = progress

    class Bar(tqdm):  # type: ignore[misc]
        """Shows nothing."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            report(file, int(self.n), self.total)

    return {"tqdm_class": Bar}


def _subject(repo_id: str, what: str | None) -> str:
    return PREFIX + repo_id + (f":{what}" if what else "")


def _is_model(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix == ".gguf" and not _NO_MODEL.search(path.name)


def _is_named(name: str, what: str) -> bool:
    """Whether a file has this name or fits this pattern, with its folder or without."""
    return fnmatchcase(name, what) or fnmatchcase(PurePosixPath(name).name, what)


def _has_quant(name: str, quant: str) -> bool:
    # a word of its own: Q4_K is not meant where Q4_K_M stands
    return bool(re.search(rf"(^|[-./]){re.escape(quant)}([-./]|$)", name, re.IGNORECASE))


def _matching(repo_id: str, names: Iterable[str], pattern: str, source: str) -> list[str]:
    found = [name for name in names if _is_named(name, pattern)]
    if not found:
        raise ModelFileError(
            _subject(repo_id, pattern), f"{source} has no such file", "check additional_files"
        )
    return found


def _downloaded(repo_id: str, cache: Path | None, folder: Path | None) -> list[str]:
    """The files of a repository that earlier downloads have left here."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    if folder is not None:
        return [file.relative_to(folder).as_posix() for file in folder.rglob("*.gguf")]
    try:
        repos = scan_cache_dir(cache).repos
    except CacheNotFound:
        return []
    return [
        file.file_path.relative_to(revision.snapshot_path).as_posix()
        for repo in repos
        if (repo.repo_type, repo.repo_id) == ("model", repo_id)
        for revision in repo.revisions
        if "main" in revision.refs
        for file in revision.files
    ]


def _is_unreachable(error: Exception) -> bool:
    """Whether an exception of huggingface_hub means: no network, no server, no answer."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    # The HTTP library is another one in each major version, and the base of this class. Errors of
    # the file system have a number, those of a network library have none.
    if isinstance(error, HfHubHTTPError.__bases__[0]):
        return True
    return isinstance(error, OSError) and error.errno is None


@contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    """Turns exceptions of huggingface_hub into ours, with what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    subject = PREFIX + repo_id
    try:
        yield
    except HFValidationError as e:
        raise ModelFileError(
            subject, "names no repository", "write hf:owner/repo, or hf:owner/repo:Q4_K_M"
        ) from e
    except GatedRepoError as e:
        raise ModelFileError(
            subject,
            "is gated: its authors want you to accept their terms",
            f"accept them at https://huggingface.co/{repo_id}, and set HF_TOKEN to a token of yours",
        ) from e
    except RepositoryNotFoundError as e:
        raise ModelFileError(
            subject,
            "is not on the hub, or is private",
            "check the name; for a private one, set HF_TOKEN",
        ) from e
    except OfflineModeIsEnabled as e:
        raise ModelFileError(
            subject, "is not in the cache, and HF_HUB_OFFLINE is set", "unset it to download"
        ) from e
    except Exception as e:
        if _is_unreachable(e):
            raise ModelFileError(
                subject,
                f"the hub cannot be reached ({_first_line(e)}), and the model is not in the cache",
                "connect and try again, or give the path of a GGUF file",
            ) from e
        if isinstance(e, HfHubHTTPError):
            raise ModelFileError(
                subject,
                f"the hub refuses it ({_first_line(e)})",
                "check HF_TOKEN, or try again later",
            ) from e
        raise


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
