"""The header of a GGUF file, and the model's shape in it."""

import struct
from dataclasses import replace

import pytest
from gguf import GGUFReader

from snapkv_local.errors import ConfigError, ModelFileError
from snapkv_local.models import gguf_shape
from snapkv_local.models.gguf_header import LongArray, read_header
from snapkv_local.models.gguf_shape import read_shape

GGUF = b"GGUF"
STRING, ARRAY = 8, 9


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(*pairs: bytes, version: int = 3, n_tensors: int = 0) -> bytes:
    return GGUF + struct.pack("<IQQ", version, n_tensors, len(pairs)) + b"".join(pairs)


def test_agrees_with_the_gguf_package(write_gguf):
    path = write_gguf(chat_template="{{ messages }}", sliding_window=16)
    ours, theirs = read_header(path), GGUFReader(path)
    found = {key: f.contents() for key, f in theirs.fields.items() if not key.startswith("GGUF.")}
    assert ours.metadata == found
    assert [(t.name, t.offset, t.n_bytes) for t in ours.tensors] == [
        (t.name, t.data_offset, t.n_bytes) for t in theirs.tensors
    ]


def test_long_arrays_are_stepped_over(write_gguf, monkeypatch):
    monkeypatch.setattr("snapkv_local.models.gguf_header.MAX_ARRAY", 2)
    path = write_gguf(token_scores=[1.0, 2.0, 3.0])
    ours = read_header(path)
    assert ours.metadata["tokenizer.ggml.tokens"] == LongArray(3)
    assert ours.metadata["tokenizer.ggml.scores"] == LongArray(3)
    assert ours.tensors == read_header_again(path, monkeypatch).tensors


def read_header_again(path, monkeypatch):
    monkeypatch.setattr("snapkv_local.models.gguf_header.MAX_ARRAY", 4096)
    return read_header(path)


def test_every_cut_of_the_header_is_reported_as_truncated(write_gguf, tmp_path):
    data = write_gguf().read_bytes()
    end = read_header(write_gguf()).tensors[0].offset
    # up to the last tensor's entry: what follows it is padding
    last = data.rindex(b"second", 0, end) + len("second") + 4 + 2 * 8 + 4 + 8
    cut = tmp_path / "cut.gguf"
    for size in range(4, last):
        cut.write_bytes(data[:size])
        with pytest.raises(ModelFileError, match="is truncated: the file ends within its header"):
            read_header(cut)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a GGUF file"),
        (b"PK\x03\x04 a zip file", "its first bytes are not 'GGUF'"),
        (header(version=1), "GGUF version 1"),
        (header(version=3 << 24), "of the other byte order"),
        (header(text("key") + struct.pack("<I", 99)), "99 is not a valid"),
        (header(text("key") + struct.pack("<IIQ", ARRAY, ARRAY, 1)), "an array of arrays"),
        (header(text("general.alignment") + struct.pack("<II", 4, 0)), "alignment 0"),
        (header(struct.pack("<Q", 1 << 62)), "is truncated"),
        (header(text("key") + struct.pack("<IIQ", ARRAY, STRING, 1 << 60)), "is truncated"),
    ],
)
def test_refuses_what_is_no_gguf_file(tmp_path, data, message):
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match=message) as caught:
        read_header(path)
    assert caught.value.subject == str(path)


def test_a_tensor_type_that_gguf_does_not_know_is_passed_over(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(header(n_tensors=1) + text("new") + struct.pack("<IQIQ", 1, 32, 9999, 0))
    assert [(t.name, t.n_bytes) for t in read_header(path).tensors] == [("new", 0)]


def test_shape(write_gguf):
    shape = read_shape(write_gguf())
    assert shape == gguf_shape.ModelShape(
        arch="llama",
        name="Tiny",
        n_layer=2,
        n_ctx_train=1024,
        n_embd=64,
        n_head=(4, 4),
        n_head_kv=(2, 2),
        head_k=16,
        head_v=16,
        n_swa=0,
        n_vocab=3,
        has_chat_template=False,
        has_learned_positions=False,
    )


def test_shape_with_sizes_of_its_own(write_gguf):
    shape = read_shape(
        write_gguf(
            key_length=32,
            value_length=24,
            sliding_window=512,
            head_count_kv=[1, 4],
            chat_template="{{ messages }}",
        )
    )
    assert (shape.head_k, shape.head_v, shape.n_swa) == (32, 24, 512)
    assert shape.n_head_kv == (1, 4)
    assert shape.has_chat_template


def test_positions_end_where_no_more_are_learned(write_gguf):
    shape = read_shape(write_gguf())
    shape.check_positions("ctx 1025", 1025, "")
    learned = replace(shape, has_learned_positions=True)
    learned.check_positions("ctx 1024", 1024, "")
    with pytest.raises(ConfigError, match=r"ctx 1025: .* of 1024 positions.*; give 1024"):
        learned.check_positions("ctx 1025", 1025, "give {most}")


def test_shape_of_a_long_vocabulary(write_gguf):
    path = write_gguf(token_list=[str(i) for i in range(5000)])
    assert read_shape(path).n_vocab == 5000


def test_a_file_without_a_language_model(tmp_path):
    path = tmp_path / "vision.gguf"
    path.write_bytes(
        header(text("general.architecture") + struct.pack("<I", STRING) + text("clip"))
    )
    with pytest.raises(ModelFileError, match=r"'clip.block_count' is missing"):
        read_shape(path)
