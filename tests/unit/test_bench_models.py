"""Made models: shape, vocabulary, bytes, and what is left after a failure."""

import dataclasses
import json

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGUFReader, dequantize

from snapkv_local.bench import make_model as maker
from snapkv_local.bench import vocabulary
from snapkv_local.bench.shapes import SHAPES
from snapkv_local.bench.tensors import rope_factors, tensors
from snapkv_local.cli import main
from snapkv_local.errors import ConfigError, ModelFileError
from snapkv_local.models import files
from snapkv_local.models.gguf_shape import read_shape

TINY = SHAPES["tiny"]


def make(path, blueprint=TINY, kind="q4_0", **kwargs):
    return maker.make_model(blueprint, kind, path, name="Tiny", **kwargs)


def invoke(*arguments):
    return CliRunner().invoke(main, ["bench", "make-model", *map(str, arguments)])


@pytest.mark.parametrize("kind", list(maker.TYPES))
def test_the_file_has_the_shape(tmp_path, kind):
    path = tmp_path / "model.gguf"
    made = make(path, kind=kind)
    shape = read_shape(path)
    assert (shape.arch, shape.name, shape.n_layer, shape.n_embd) == ("llama", "Tiny", 4, 256)
    assert (set(shape.n_head), set(shape.n_head_kv), shape.head_k, shape.head_v) == (
        {4},
        {2},
        64,
        64,
    )
    assert (shape.n_ctx_train, shape.n_vocab) == (2**20, 1024)
    files.check(path)  # nothing is missing at its end
    assert made.n_bytes == path.stat().st_size
    assert made.n_params == sum(int(t.n_elements) for t in GGUFReader(path).tensors)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llama31-8b", 8.03),
        ("llama32-1b", 1.24),
        ("llama32-3b", 3.21),
        ("llama2-7b", 6.74),
        ("mistral-7b", 7.25),
        ("qwen3-8b", 8.19),
        ("qwen3-30b-a3b", 30.53),
        ("gemma3-4b", 3.88),
        ("gemma3-12b", 11.77),
        # model cards, and what llama.cpp's tools print
        ("qwen35-27b", 26.90),
        ("qwen35-9b", 8.95),
        ("qwen35-35b-a3b", 34.66),
        ("qwen3next-80b-a3b", 79.67),
        ("gemma4-26b-a4b", 25.23),
        ("gemma4-e4b", 7.52),
        ("granite4-h-small", 32.21),
        ("nemotron3-nano", 31.58),
        ("lfm2-8b", 8.34),
        ("glm47-flash", 29.94),
        ("gpt-oss-20b", 20.91),
    ],
)
def test_shapes_have_the_real_models_weights(name, billions):
    blueprint = SHAPES[name]
    specs = tensors(blueprint, blueprint.n_vocab)
    n_params = sum(int(np.prod(spec.shape)) for spec in specs)
    assert n_params / 1e9 == pytest.approx(billions, abs=0.006)
    assert len({spec.name for spec in specs}) == len(specs)
    assert all(spec.shape[-1] % 32 == 0 for spec in specs if spec.kind == "matrix")


@pytest.mark.parametrize("kind", list(maker.TYPES))
def test_weights_have_unit_gain_and_no_two_rows_alike(tmp_path, kind):
    make(tmp_path / "model.gguf", kind=kind)
    by_name = {t.name: t for t in GGUFReader(tmp_path / "model.gguf").tensors}
    for name, n_in in (("blk.0.attn_q.weight", 256), ("blk.3.ffn_down.weight", 512)):
        tensor = by_name[name]
        matrix = dequantize(tensor.data, tensor.tensor_type)
        assert matrix.shape[-1] == n_in
        assert matrix.std() * n_in**0.5 == pytest.approx(1, rel=0.03)
        assert abs(matrix.mean()) < 0.05 * matrix.std()
        assert len(np.unique(matrix, axis=0)) == len(matrix)
    assert (by_name["blk.0.attn_norm.weight"].data == 1).all()


def test_equal_seeds_give_equal_bytes(tmp_path):
    paths = [tmp_path / f"{i}.gguf" for i in range(3)]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        make(path, seed=seed)
    a, b, c = (path.read_bytes() for path in paths)
    assert a == b != c


def test_made_up_vocabulary_has_every_byte(tmp_path):
    make(tmp_path / "model.gguf")
    fields = GGUFReader(tmp_path / "model.gguf").fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert tokens[:256] == [vocabulary.byte_token(byte) for byte in range(256)]
    assert (tokens[ord("a")], tokens[ord(" ")], tokens[ord("\n")]) == ("a", "Ġ", "Ċ")
    assert len(set(tokens)) == len(tokens) == 1024
    kinds = fields["tokenizer.ggml.token_type"].contents()
    assert [i for i, kind in enumerate(kinds) if kind == 3] == [1022, 1023]


def test_vocabulary_from_a_file(tmp_path):
    make(tmp_path / "vocab.gguf", dataclasses.replace(TINY, n_vocab=300))
    made = make(tmp_path / "model.gguf", vocab=tmp_path / "vocab.gguf")
    assert made.n_vocab == read_shape(tmp_path / "model.gguf").n_vocab == 300
    fields = [GGUFReader(tmp_path / f"{name}.gguf").fields for name in ("vocab", "model")]
    ours = [name for name in fields[0] if name.startswith("tokenizer.")]
    assert ours
    assert all(fields[0][name].contents() == fields[1][name].contents() for name in ours)


def test_vocabulary_that_is_none(tmp_path, write_gguf):
    with pytest.raises(ConfigError, match="too small for 256 bytes"):
        make(tmp_path / "model.gguf", dataclasses.replace(TINY, n_vocab=258))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    with pytest.raises(ModelFileError, match=r"broken\.gguf"):
        make(tmp_path / "model.gguf", vocab=broken)
    assert [file.name for file in tmp_path.iterdir()] == ["broken.gguf"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_no_half_file_is_left(tmp_path, error):
    def stop(done, total):
        if done > total // 2:
            raise error

    path = tmp_path / "model.gguf"
    path.write_text("the old one")
    with pytest.raises(type(error)):
        make(path, force=True, progress=stop)
    assert [file.name for file in tmp_path.iterdir()] == ["model.gguf"]
    assert path.read_text() == "the old one"


@pytest.mark.parametrize(
    ("name", "attention", "recurrent"),
    [
        ("qwen35-27b", range(3, 64, 4), 48),
        ("qwen35-9b", range(3, 32, 4), 24),
        ("qwen35-35b-a3b", range(3, 40, 4), 30),
        ("qwen3next-80b-a3b", range(3, 48, 4), 36),
        ("gemma4-26b-a4b", range(5, 30, 6), 0),
        ("gemma4-e4b", range(5, 42, 6), 0),
        ("granite4-h-small", (5, 15, 25, 35), 36),
        ("nemotron3-nano", (5, 12, 19, 26, 33, 42), 23),
        ("lfm2-8b", (2, 6, 10, 14, 18, 21), 18),
        ("gpt-oss-20b", range(1, 24, 2), 0),
    ],
)
def test_layers_stand_where_the_real_models_have_them(name, attention, recurrent):
    b = SHAPES[name]
    mixers = [b.mixer(il) for il in range(b.n_layer)]
    assert [il for il, mixer in enumerate(mixers) if mixer == "a"] == list(attention)
    assert mixers.count("r") == recurrent


def test_gemma4_turns_a_quarter_of_a_head():
    factors = rope_factors(SHAPES["gemma4-26b-a4b"])
    assert factors == [1.0] * 64 + [1e30] * 192


def test_llama3_frequencies():
    factors = rope_factors(SHAPES["llama31-8b"])
    assert (factors[0], factors[-1], len(factors)) == (1.0, 8.0, 64)
    assert factors == sorted(factors)


def test_command_line(tmp_path):
    out = tmp_path / "tiny.gguf"
    result = invoke("--shape", "tiny", "--type", "q8_0", "--out", out, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["n_bytes"] == out.stat().st_size
    again = invoke("--shape", "tiny", "--out", out)
    assert again.exit_code == 1
    assert again.stderr == f"Error: {out}: exists already; pass --force to overwrite it\n"
    forced = invoke("--shape", "tiny", "--out", out, "--force")
    assert forced.exit_code == 0
    assert str(out) in forced.stdout


@pytest.mark.parametrize(
    "arguments", [(), ("--shape", "llama4"), ("--shape", "tiny", "--type", "q1")]
)
def test_wrong_usage(arguments):
    assert invoke(*arguments).exit_code == 2
