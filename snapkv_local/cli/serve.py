"""`snapkv-local serve`: OpenAI's HTTP API, and a chat page."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from snapkv_local import memory
from snapkv_local.cli.chat_template import chat_template_options
from snapkv_local.cli.conversations import conversation_options, how_many, resting
from snapkv_local.cli.document import open_document, take_document_settings, use_document
from snapkv_local.cli.drafting import draft_options
from snapkv_local.cli.loading import load
from snapkv_local.cli.model import model_choice
from snapkv_local.cli.options import (
    ctx_option,
    full_option,
    gather_loading,
    json_option,
    model_options,
    settings_options,
    take_settings,
    warn_of_other_model,
)
from snapkv_local.cli.progress import find_model
from snapkv_local.cli.sampling import Sampling, sampling_options
from snapkv_local.cli.types import ByteSize, Limit, NamedFile
from snapkv_local.config import SnapKVConfig
from snapkv_local.errors import ConfigError
from snapkv_local.llama.load_options import LoadOptions
from snapkv_local.profile import Profile
from snapkv_local.reading.text import decode

if TYPE_CHECKING:
    from snapkv_local.llama.llama import Llama
    from snapkv_local.storage.document import Document


@click.command()
@model_choice()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="The port; 0 takes any free one.",
)
@click.option(
    "--api-key",
    "keys",
    multiple=True,
    help="A key that requests need; may be repeated.  [or SNAPKV_API_KEY]",
)
@click.option(
    "--api-key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file of keys that requests need, one in a line.",
)
@click.option("--alias", help="The model's name in answers.  [default: the file's name]")
@click.option(
    "--document",
    "documents",
    multiple=True,
    type=NamedFile(),
    help="A file that `ingest` has made, which requests may name by its id.  [default id: the file's name]",
)
@ctx_option
@settings_options
@model_options
@chat_template_options
@full_option
@conversation_options
@click.option(
    "-n",
    "--predict",
    "--n-predict",
    "--max-tokens",
    "max_tokens",
    type=Limit(),
    help="The most tokens of any answer.  [default: what the context allows]",
)
@click.option(
    "--max-queue",
    type=click.IntRange(0),
    default=64,
    show_default=True,
    help="How many requests may wait; more get status 429.",
)
@click.option(
    "--max-body",
    type=ByteSize(),
    default="64MiB",
    show_default=True,
    help="The most bytes of a request.",
)
@click.option(
    "--cors-origin",
    "cors_origins",
    multiple=True,
    help="A web origin whose pages may call the server; may be repeated.",
)
@click.option(
    "--allowed-host",
    "hosts",
    multiple=True,
    help="A name that may stand in the Host header.  [default: those of a loopback --host, else any]",
)
@click.option(
    "--strict",
    is_flag=True,
    help="Refuse requests with fields that the server does not know.  [default: a header names them]",
)
@click.option(
    "--slots/--no-slots", default=True, help="Show at /slots what conversations hold, or not."
)
@sampling_options(temperature=0.8)
@draft_options
@json_option
@gather_loading
def serve(
    model: str,
    host: str,
    port: int,
    keys: tuple[str, ...],
    api_key_file: Path | None,
    alias: str | None,
    documents: tuple[tuple[str, Path], ...],
    max_tokens: int | None,
    max_queue: int,
    max_body: int,
    cors_origins: tuple[str, ...],
    hosts: tuple[str, ...],
    strict: bool,
    slots: bool,
    parallel: int | str,
    cache_ram: int | None,
    cache_dir: Path | None,
    cache_disk: int,
    sampling: Sampling,
    profile: Profile | None,
    loading: LoadOptions,
    as_json: bool,
    **options: Any,
) -> None:
    """Serve MODEL with OpenAI's HTTP API, and a chat page at /.

    Several requests are answered at once, each with the conversation that it continues. The address is
    printed on stdout; the log goes to stderr. Ctrl-C ends what runs, and the server.
    """
    paths = dict(documents)
    if len(paths) < len(documents):
        raise click.UsageError("two documents have one id: name them with --document ID=PATH")
    for file in paths.values():
        if not file.is_file():
            raise click.UsageError(f"--document {file}: there is no such file")
    settings = (take_document_settings if paths else take_settings)(options, profile)
    try:
        from snapkv_local.server.guard import LOOPBACK
        from snapkv_local.server.run import Server, ServerOptions
    except ModuleNotFoundError as e:
        raise ConfigError(
            "serve", f"{e.name} is not installed", 'pip install "snapkv-local[server]"'
        ) from e

    config = None if settings is None else SnapKVConfig(**settings)
    path = find_model(model)
    warn_of_other_model(profile, path)
    api_keys = read_keys(keys, api_key_file)
    if not hosts and host in LOOPBACK:
        hosts = tuple(LOOPBACK)
    if not api_keys and host not in LOOPBACK:
        click.echo(f"Anybody who reaches {host} can use this server: see --api-key", err=True)
    memory.give_back_large_blocks()
    server = Server(
        load=lambda: (
            *load_with(path, config, loading, paths, how_many(parallel, path, config, loading)),
            resting(cache_ram, cache_dir, cache_disk),
        ),
        model=alias or path.stem,
        max_tokens=max_tokens or None,
        max_queue=max_queue,
        sampling=dataclasses.asdict(sampling),
        options=ServerOptions(
            api_keys=api_keys,
            max_body=max_body,
            cors_origins=cors_origins,
            hosts=frozenset(name.lower() for name in hosts) or None,
            strict=strict,
            shows_slots=slots,
        ),
    )
    with listen(host, port) as listener:
        url = address(host, listener)
        click.echo(json.dumps({"url": url, "model": server.model}) if as_json else url)
        server.run(listener)


def load_with(
    path: Path,
    config: SnapKVConfig | None,
    loading: LoadOptions,
    documents: dict[str, Path],
    n_parallel: int,
) -> tuple[Llama, dict[str, Document]]:
    """Load the model, and open documents in it.

    Args:
        documents: files by id.
        n_parallel: conversations that there is room for.
    """
    opened = {}
    for id_, file in documents.items():
        opened[id_], loading = open_document(file, loading)
    llm = load(path, config, loading, n_parallel=n_parallel)
    return llm, {id_: use_document(llm, document) for id_, document in opened.items()}


def read_keys(keys: tuple[str, ...], file: Path | None) -> tuple[str, ...]:
    """The keys of options, environment and file.

    Raises:
        ConfigError: the file has none.
    """
    found = [*keys, *filter(None, [os.environ.get("SNAPKV_API_KEY")])]
    if file is not None:
        lines = [line.strip() for line in decode(file.read_bytes(), str(file)).splitlines()]
        if not any(lines):
            raise ConfigError(str(file), "holds no key", "write one in each line")
        found += filter(None, lines)
    if not all(key.strip() for key in found):
        raise ConfigError("--api-key", "is empty", "give a key, or leave it out")
    return tuple(found)


@contextlib.contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """A listening socket. Taken before the model is loaded, which may take long.

    Raises:
        ConfigError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        # address reuse, on by default on POSIX: a server that was killed is no hindrance
        listener = socket.create_server((host, port), family=family, backlog=256)
    except (OSError, OverflowError) as e:
        reason = getattr(e, "strerror", None) or str(e)
        raise ConfigError(
            f"{host}:{port}",
            f"cannot be listened on ({reason})",
            "end what uses it, or choose another --port",
        ) from e
    with listener:
        yield listener


def address(host: str, listener: socket.socket) -> str:
    """The server's URL."""
    port = listener.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
