"""What a plan foresees, beside what an NVIDIA H200 took, and what its graphs take."""

from dataclasses import replace

import pytest

from snapkv_local.bench.shapes import SHAPES
from snapkv_local.config import SnapKVConfig
from snapkv_local.plan.fit import Task
from snapkv_local.plan.layers import N_PAD, Place, pad
from snapkv_local.plan.measure import _full
from snapkv_local.plan.memory import compressed, plain
from snapkv_local.plan.model import read_model

LARGE = 64 << 20  # bytes from which parts are held to TOLERANCE, as by `plan --measure`
TOLERANCE = 0.05
N_CTX = 32_768
CONFIG = SnapKVConfig(budget=2048, decode_cells=1024)
N_PROMPT = N_CTX - CONFIG.decode_cells

# layers of each kind, no more: buffers of most graphs do not depend on their number
N_LAYERS = {
    "gemma3-4b": 6, "gemma3-12b": 6, "gemma4-26b-a4b": 6, "gemma4-e4b": 12, "granite4-h-small": 6,
    "lfm2-8b": 7, "nemotron3-nano": 7,
}  # fmt: skip

# NVIDIA H200, CUDA, commit 5e0903f, weights in q4_0, chunks of 512 tokens: shape, type of the KV cache, G,
# and the bytes of each part above 64 MiB
H200 = [
    ("qwen35-9b", "f16", 1,
     {"weights": 496_439_552, "kv_group": 130_023_424, "compute": 109_087_040, "full": 136_609_792}),
    ("qwen35-9b", "q8_0", 1,
     {"weights": 496_439_552, "kv_group": 69_074_944, "compute": 206_113_088, "full": 75_661_312}),
    ("qwen35-27b", "f16", 1,
     {"weights": 868_551_296, "kv_group": 130_023_424, "compute": 148_932_928, "full": 139_829_248}),
    ("gemma4-26b-a4b", "f16", 1,
     {"weights": 2_766_848_000, "kv": 75_497_472, "kv_group": 130_023_424,
      "compute": 161_519_776, "full": 192_937_984}),
    ("gemma4-26b-a4b", "q8_0", 1,
     {"weights": 2_766_848_000, "kv_group": 69_074_944, "compute": 206_674_080, "full": 102_498_304}),
    ("qwen3-30b-a3b", "f16", 1,
     {"weights": 1_410_412_544, "hidden": 260_571_136, "compute": 96_481_312, "full": 260_046_848}),
    ("qwen3-30b-a3b", "q8_0", 1,
     {"weights": 1_410_412_544, "hidden": 260_571_136, "compute": 98_752_544, "full": 138_149_888}),
    ("qwen35-35b-a3b", "f16", 1,
     {"weights": 1_904_808_192, "compute": 114_891_072, "full": 71_598_080}),
    ("qwen3next-80b-a3b", "f16", 1,
     {"weights": 3_725_136_128, "compute": 139_528_512, "full": 71_598_080}),
    ("granite4-h-small", "f16", 1,
     {"weights": 2_681_094_656, "kv_group": 130_023_424, "compute": 249_579_840, "full": 151_501_824}),
    ("nemotron3-nano", "f16", 1,
     {"weights": 2_278_200_576, "compute": 119_294_272}),
    ("lfm2-8b", "f16", 1,
     {"weights": 1_103_349_376, "hidden": 260_308_992, "full": 130_105_344}),
    ("glm47-flash", "f16", 1,
     {"weights": 1_125_872_384, "hidden": 261_521_408, "compute": 90_185_760, "full": 146_276_352}),
    ("glm47-flash", "f16", 4,
     {"weights": 1_125_872_384, "kv_group": 146_276_352, "compute": 90_192_032, "full": 146_276_352}),
    ("glm47-flash", "q8_0", 1,
     {"weights": 1_125_872_384, "hidden": 261_521_408, "compute": 133_576_736, "full": 77_709_312}),
    ("gpt-oss-20b", "f16", 1,
     {"weights": 1_864_077_056, "hidden": 366_215_168, "compute": 104_372_384, "full": 133_169_152}),
    ("gemma4-e4b", "f16", 1,
     {"weights": 654_475_264, "kv_group": 130_023_424, "compute": 108_044_448, "full": 140_509_184}),
    ("gemma3-12b", "f16", 1,
     {"weights": 761_269_248, "kv": 88_080_384, "kv_group": 260_046_848,
      "compute": 137_402_528, "full": 322_961_408}),
    ("llama31-8b", "f16", 1,
     {"weights": 500_318_464, "kv_group": 130_023_424, "hidden": 520_617_984,
      "compute": 130_035_744, "full": 520_093_696}),
    ("llama31-8b", "f16", 4,
     {"weights": 500_318_464, "kv_group": 520_093_696, "compute": 130_046_112, "full": 520_093_696}),
    ("llama31-8b", "q8_0", 1,
     {"weights": 500_318_464, "kv_group": 69_074_944, "hidden": 520_617_984,
      "compute": 180_541_472, "full": 276_299_776}),
]  # fmt: skip

# compute buffers of more graphs, with CUDA's graph optimization and its place for attention, allocated on a
# CPU and not computed, with 16 experts: shape, its layers if not as above, type, G, bytes. What the H200
# took of graphs without experts was the same but for 200 bytes
GRAPHS = [
    ("gemma3-12b", None, "q8_0", 1, 312_580_160),
    ("gpt-oss-20b", None, "q8_0", 1, 107_124_800),
    ("qwen35-35b-a3b", None, "q8_0", 1, 128_653_440),
    ("qwen35-27b", None, "q8_0", 1, 235_473_024),
    ("lfm2-8b", None, "q8_0", 1, 90_265_728),
    ("nemotron3-nano", None, "q8_0", 1, 119_457_920),
    ("gemma3-4b", None, "q8_0", 1, 163_682_368),
    ("gemma3-4b", None, "f16", 1, 91_265_088),
    ("gemma4-e4b", 42, "q8_0", 1, 239_706_144),
    ("gemma4-e4b", 42, "f16", 1, 146_841_664),
    ("granite4-h-small", None, "q8_0", 1, 249_743_488),
    ("qwen3next-80b-a3b", None, "q8_0", 1, 137_037_952),
    ("gemma4-e4b", None, "q8_0", 1, 191_995_968),
    ("qwen3-30b-a3b", None, "q8_0", 4, 136_501_312),
    ("glm47-flash", None, "q8_0", 4, 135_833_664),
    ("llama31-8b", None, "q8_0", 4, 180_541_504),
]  # fmt: skip

# plain llama.cpp's, reserved in the same way: MiB on the device
PLAIN = [
    ("llama31-8b", None, "q8_0", 192.09),
    ("qwen3-30b-a3b", None, "q8_0", 156.09),
    ("qwen3-30b-a3b", None, "f16", 116.01),
    ("qwen35-9b", None, "q8_0", 216.28),
    ("qwen35-35b-a3b", None, "q8_0", 148.41),
    ("gemma4-26b-a4b", None, "q8_0", 219.3),
    ("gemma4-26b-a4b", None, "f16", 173.52),
    ("gemma4-e4b", None, "q8_0", 200.8),
    ("gemma4-e4b", None, "f16", 118.02),
    ("gemma4-e4b", 42, "q8_0", 231.3),
    ("gemma4-e4b", 42, "f16", 134.02),
    ("gemma3-12b", None, "q8_0", 321.05),
    ("gpt-oss-20b", None, "q8_0", 124.08),
    ("gpt-oss-20b", None, "f16", 119.52),
    ("glm47-flash", None, "q8_0", 154.66),
    ("glm47-flash", None, "f16", 110.01),
    ("lfm2-8b", None, "q8_0", 112.04),
    ("granite4-h-small", None, "f16", 254.01),
    ("nemotron3-nano", None, "q8_0", 135.34),
    ("qwen3next-80b-a3b", None, "q8_0", 154.41),
]  # fmt: skip


def made(name, **changes):
    """A shape with a few layers, like those that were measured."""
    changes = {"n_layer": N_LAYERS.get(name, 4), "n_vocab": 2048} | changes
    if name == "gemma4-e4b" and changes["n_layer"] == 12:
        changes["n_shared_kv"] = 6
    return replace(SHAPES[name], **changes)


def foreseen(model, kv_type, group):
    """Bytes by part, and of the full KV."""
    config = replace(CONFIG, layer_group=group)
    found = compressed(model, N_PROMPT, config, kv_type, Place(True), group=group, n_ubatch=512)
    parts = {name: part.total for name, part in found.parts.items()}
    task = Task(model, config, kv_type, Place(True), 1 << 40)
    return parts | {"weights": model.bytes_weights, "full": _full(task, N_PROMPT)}


@pytest.mark.parametrize(("name", "kv_type", "group", "measured"), H200)
def test_what_an_h200_took(name, kv_type, group, measured, write_metadata):
    found = foreseen(read_model(write_metadata(made(name))), kv_type, group)
    assert {"weights", "compute"} <= measured.keys() or name == "lfm2-8b"
    for part, n_bytes in measured.items():
        assert n_bytes > LARGE
        assert found[part] == pytest.approx(n_bytes, rel=TOLERANCE), part
    small = found.keys() - measured.keys() - {"process"}
    assert all(found[part] < LARGE * (1 + TOLERANCE) for part in small)


@pytest.mark.parametrize(("name", "n_layer", "kv_type", "group", "measured"), GRAPHS)
def test_what_graphs_take(name, n_layer, kv_type, group, measured, write_metadata):
    model = read_model(write_metadata(made(name, **({"n_layer": n_layer} if n_layer else {}))))
    assert foreseen(model, kv_type, group)["compute"] == pytest.approx(measured, rel=TOLERANCE)


@pytest.mark.parametrize(("name", "n_layer", "kv_type", "mib"), PLAIN)
def test_what_graphs_of_plain_llama_cpp_take(name, n_layer, kv_type, mib, write_metadata):
    model = read_model(write_metadata(made(name, **({"n_layer": n_layer} if n_layer else {}))))
    found = plain(model, N_PROMPT, CONFIG.decode_cells, kv_type, Place(True)).parts["compute"].main
    assert found == pytest.approx(mib * (1 << 20), rel=TOLERANCE)


def test_what_cuda_widens_is_foreseen_beside_the_layer(write_metadata):
    """Queries of gated attention and of MLA have more places below it than others."""

    def elements(name):
        model = read_model(write_metadata(made(name)))
        rows = max(layer.n_row for layer in model.layers if layer.is_cached)
        buffer = (
            compressed(model, N_PROMPT, CONFIG, "q8_0", Place(True), group=1).parts["compute"].main
        )
        return (buffer - 2 * rows * pad(N_PROMPT, N_PAD)) // (4 * 512)

    assert elements("llama31-8b") == 2 * 4096 + 2 * 4096
    assert elements("qwen35-9b") == 2 * 4096 + 5 * 4096
    assert elements("glm47-flash") == 2 * 2048 + 768 + 20 * (256 + 576 + 576 + 512)
