"""Compute buffers that a plan foresees, beside those that were measured."""

import itertools

import pytest
from small_shapes import quarter

from snapkv_local.bench.blueprint import Blueprint
from snapkv_local.bench.shapes import SHAPES
from snapkv_local.config import SnapKVConfig
from snapkv_local.models.resolve import demo_model
from snapkv_local.plan import compute
from snapkv_local.plan.layers import CPU, Place
from snapkv_local.plan.memory import compressed, plain
from snapkv_local.plan.model import read_model

MIB = 1 << 20


# what llama.cpp's log says for the demo model: "CPU compute buffer size"
@pytest.mark.parametrize(
    ("n_cells", "n_ubatch", "mib"),
    [(8192, 512, 98.252), (32768, 128, 24.563), (65536, 512, 98.252)],
)
def test_the_compute_buffer_that_llama_cpp_reserves(n_cells, n_ubatch, mib):
    model = read_model(demo_model())
    found = compute.reserved(model, n_cells, n_ubatch)
    assert found == pytest.approx(mib * MIB, rel=0.001)


# float32 elements for each token of a chunk of 256, without a GPU: measured, less tokens and positions; the
# same whatever G is, and with a last chunk of 16 tokens or of 256. n_embd, n_ff, heads, KV heads, head
@pytest.mark.parametrize(
    ("shape", "elements"),
    [
        ((256, 1024, 8, 8, 32), 4096),
        ((512, 1024, 8, 2, 32), 4864),
        ((256, 1024, 8, 2, 64), 4352),
    ],
)
def test_compute_buffers_of_a_prefill(shape, elements, write_metadata):
    n_embd, n_ff, n_head, n_head_kv, head_dim = shape
    made = Blueprint("llama", 4, n_embd, n_ff, n_head, n_head_kv, head_dim, 1024, 10_000.0)
    model = read_model(write_metadata(made))
    for n, group in itertools.product((1024, 1040), (1, 4)):
        found = compressed(model, n, SnapKVConfig(budget=256), "f16", group=group, n_ubatch=256)
        assert found.parts["compute"].main == 4 * 256 * elements, (n, group)


# elements of a token in the compute buffer of a chunk of 128: measured without a GPU; and with layers on a
# device whose graphs are optimized as CUDA's are, input and masks in host memory included
COMPUTE = {
    "llama31-8b": (14_854, 15_878),
    "qwen3-8b": (13_318, None),
    "gemma3-4b": (10_250, None),
    "gemma3-12b": (15_562, None),
    "qwen35-27b": (16_905, 18_193),
    "qwen35-9b": (12_297, None),
    "qwen35-35b-a3b": (9_225, 13_907),
    "qwen3next-80b-a3b": (11_014, 16_721),
    "qwen3-30b-a3b": (11_270, 11_782),
    "gemma4-26b-a4b": (12_426, 19_603),
    "gemma4-e4b": (13_195, None),
    "granite4-h-small": (20_101, 31_369),
    "nemotron3-nano": (9_861, 14_569),
    "lfm2-8b": (6_966, 7_509),
    "glm47-flash": (10_500, 11_012),
    "gpt-oss-20b": (11_962, 12_819),
}


@pytest.mark.parametrize("name", COMPUTE)
def test_compute_buffers_of_shapes(name, write_metadata):
    model = read_model(write_metadata(quarter(name)))
    config = SnapKVConfig(budget=64, window_size=8)
    for place, elements in zip((CPU, Place(True)), COMPUTE[name], strict=True):
        found = compressed(model, 528, config, "f16", place, group=1, n_ubatch=128).parts["compute"]
        if elements is not None:
            assert found.total == pytest.approx(4 * 128 * elements, rel=0.035), place


def test_what_experts_give_is_kept_where_their_sum_is_one_node(write_metadata):
    """By the kernels of a GPU; they sum no more than so many experts."""

    def buffer(name, kind):
        model = read_model(write_metadata(quarter(name)))
        how = {"group": 1, "n_ubatch": 128, "place": Place(True, kind=kind)}
        return compressed(model, 528, SnapKVConfig(budget=64), "f16", **how).parts["compute"].main

    given = {name: 4 * 128 * n_used * n_embd for name, n_used, n_embd in (
        ("gemma4-26b-a4b", 8, 704), ("granite4-h-small", 10, 1024))}  # fmt: skip
    for name, n_bytes in given.items():
        assert buffer(name, "cuda") == buffer(name, "hip")
        summed = name == "gemma4-26b-a4b"  # Metal's of at most 8
        assert buffer(name, "cuda") - buffer(name, "metal") == (0 if summed else n_bytes)


@pytest.mark.parametrize("kv_type", ["q8_0", "q4_0"])
def test_attention_on_cuda_widens_quantized_rows(kv_type, write_metadata):
    """K and V of a layer, all cells; nothing on Metal and processors, and nothing of f16."""
    model = read_model(write_metadata(SHAPES["llama31-8b"]))
    rows = 2 * 131_072 * 2 * 8 * 128

    def buffer(kv_type, place):
        config = SnapKVConfig(budget=2048)
        return compressed(model, 131_072, config, kv_type, place, group=1).parts["compute"].main

    assert rows < buffer(kv_type, Place(True)) < rows + (64 << 20)
    for place in (CPU, Place(True, kind="metal")):
        assert buffer(kv_type, place) == buffer("f16", place)
    assert buffer("f16", Place(True)) == buffer("f16", Place(True, kind="metal"))
    full = plain(model, 130_048, 1024, kv_type, Place(True)).parts["compute"].main
    # mask; hidden state, and normed, queries, result
    assert full == rows + 2 * 512 * 131_072 + 4 * 512 * 4 * 4096
