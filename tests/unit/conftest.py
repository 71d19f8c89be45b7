"""GGUF files small enough to write in a test."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from snapkv_local.bench import make_model, vocabulary
from snapkv_local.bench.blueprint import Blueprint
from snapkv_local.models.gguf_header import read_header


@pytest.fixture
def write_gguf(tmp_path) -> Callable[..., Path]:
    """A function that writes a GGUF file with a small model's metadata and two tensors."""

    def write(name: str = "model.gguf", **extra: object) -> Path:
        writer = GGUFWriter(tmp_path / name, "llama")
        writer.add_name("Tiny")
        writer.add_block_count(2)
        writer.add_context_length(1024)
        writer.add_embedding_length(64)
        writer.add_head_count(4)
        writer.add_head_count_kv(2)
        writer.add_token_list(["a", "b", "c"])
        for method, value in extra.items():
            getattr(writer, f"add_{method}")(value)
        writer.add_tensor("first", np.ones((4, 32), dtype=np.float32))
        writer.add_tensor("second", np.ones((2, 32), dtype=np.float16))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / name

    return write


@pytest.fixture
def write_metadata(tmp_path, monkeypatch) -> Callable[..., Path]:
    """Writes the header of a GGUF file after a Blueprint: no weights, and no tokens but their number.

    With whole=True the tokens are there, which takes seconds, and the weights' room as a hole.
    """

    def write(blueprint: Blueprint, kind: str = "q4_0", whole: bool = False) -> Path:
        path = tmp_path / "metadata.gguf"
        writer = GGUFWriter(path, blueprint.arch)
        if not whole:
            monkeypatch.setattr(vocabulary, "add_made_up", lambda _writer, _n_vocab: None)
        make_model._describe(writer, blueprint, kind, "metadata only", None)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        if whole:
            last = read_header(path).tensors[-1]
            os.truncate(path, last.offset + last.n_bytes)
        return path

    return write
