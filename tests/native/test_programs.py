"""The engine without Python in between, on synthetic models and on real ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import architectures
from snapkv_local.models.resolve import demo_model, needle_model

Run = Callable[..., str]

pytestmark = pytest.mark.native

ROOT = Path(__file__).parents[2]
# plain, with sliding windows, with sinks, with layers that share KV, latent, hybrid
EACH_MEMORY = (
    "llama-dense",
    "gemma3-dense",
    "gpt-oss-moe",
    "gemma4-shared-dense",
    "deepseek2-moe",
    "qwen35-dense",
)


def test_selection(run: Run) -> None:
    assert run("test-snapkv-select").strip() == "OK"


def test_fused_ops(run: Run) -> None:
    """Against float64 and against ggml's ops, on every device that is here."""
    # it repeats each case with two or three threads
    threads = {"OMP_THREAD_LIMIT": "3", "OMP_WAIT_POLICY": "passive"}
    assert run("test-snapkv-ops", "--quick", **threads).strip().splitlines()[-1].startswith("OK")


def test_metal_kernels_as_cpp(run: Run) -> None:
    """Their logic: each thread of a threadgroup as a fiber. No Apple hardware is tested by this."""
    assert run("test-snapkv-metal").strip().splitlines()[-1] == "passed"


def test_hip_kernels_as_cpp(run: Run) -> None:
    """Those of AMD's GPUs, with waves of 32 and of 64 lanes, and of NVIDIA's older ones.

    No such hardware is tested by this.
    """
    assert run("test-snapkv-hip").strip().splitlines()[-1] == "passed"


def compiles(binaries: Path, out: Path, *compiler: str) -> None:
    """The sources of csrc/ops/cuda, one by one, through ccache where it is there."""
    sources = sorted((ROOT / "csrc/ops/cuda").glob("*.cu"))
    assert sources
    command = [
        *(["ccache"] if shutil.which("ccache") else []),
        *(*compiler, "-std=c++17", "-I", binaries.parent / "llama.cpp/ggml/include"),
        *("-I", ROOT / "csrc", "-o", out, "-c"),
    ]
    environment = {
        **os.environ,
        **{"CCACHE_BASEDIR": str(ROOT), "CCACHE_NOHASHDIR": "1"},  # the same in another checkout
        "HIP_PLATFORM": "amd",  # hipcc would take nvcc where it finds that
    }
    for source in sources:
        result = subprocess.run(
            [*command, source], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA compiler (nvcc) on this machine")
def test_cuda_sources_compile(binaries: Path, tmp_path: Path) -> None:
    """Unoptimized, with tensor cores that the kernels know and for the oldest GPUs that nvcc 13 knows."""
    architectures = [f"-gencode=arch=compute_{cc},code=sm_{cc}" for cc in (75, 80)]
    compiles(
        binaries, tmp_path / "out.o", "nvcc", *architectures, "-Xcicc", "-O0", "-Xptxas", "-O0"
    )


@pytest.mark.skipif(shutil.which("hipcc") is None, reason="no HIP compiler (hipcc) on this machine")
def test_cuda_sources_compile_with_hip(binaries: Path, tmp_path: Path) -> None:
    """Unoptimized, for a GPU with waves of 32 lanes and for one with waves of 64."""
    architectures = [f"--offload-arch={name}" for name in ("gfx1030", "gfx906")]
    options = ["-x", "hip", "-DGGML_USE_HIP", "-O0", *architectures]
    compiles(binaries, tmp_path / "out.o", "hipcc", *options)


def test_the_register_of_backends(run: Run) -> None:
    """Its lines, which devices have fused ops, and what `doctor --prove` computes, on a made device, too."""
    assert run("test-snapkv-devices").strip() == "OK"


def test_several_gpus_at_the_same_time(run: Run) -> None:
    """Layers dealt to made devices that do late what they are given: exact, in device or host memory."""
    assert run("test-snapkv-overlap").strip() == "OK"


@pytest.mark.parametrize(
    "arch", [*EACH_MEMORY, "qwen3-dense", "cohere2moe-moe", "granitehybrid-dense"]
)
def test_devices_that_nobody_has_proven(run: Run, arch_models: Path, arch: str) -> None:
    """Refused; and tried, exact on a made device.

    It ignores the stride of masks, as Vulkan does, and computes neighbours as one, as CUDA does.
    """
    assert run("test-snapkv-devices", arch_models / f"{arch}.gguf").strip() == "OK"


@pytest.mark.parametrize(
    "arch",
    [
        "llama-dense",
        "gemma3-dense",
        "gpt-oss-moe",
        "qwen3-dense",
        "gemma4-shared-dense",
        "deepseek2-moe",
    ],
)
def test_compacted_sequences(run: Run, arch_models: Path, arch: str) -> None:
    """Guards, states, sequences, no room, aborts, out of memory; with sliding windows and without."""
    assert run("test-snapkv-cache", arch_models / f"{arch}.gguf").strip().endswith("OK")


@pytest.mark.parametrize(
    "arch", ["llama-dense", "qwen3-dense", "gemma4-dense", "gemma4-shared-dense", "deepseek2-moe"]
)
def test_selective_prefills(run: Run, arch_models: Path, arch: str) -> None:
    """With all rows exact; else later layers are those of a model of theirs alone, sliding windows or not."""
    assert run("test-snapkv-selective", arch_models / f"{arch}.gguf").strip() == "OK"


@pytest.mark.parametrize("arch", EACH_MEMORY)
def test_recall_while_answering(run: Run, arch_models: Path, arch: str) -> None:
    """The rows are those of the rule, in double, with the vault's bytes; no other cell has changed."""
    assert run("test-snapkv-recall", arch_models / f"{arch}.gguf").strip() == "OK"


@pytest.mark.parametrize("arch", ["llama-dense", "gemma3-dense"])
def test_recall_beside_a_device(run: Run, arch_models: Path, arch: str) -> None:
    """The cache is in memory of its own, and other threads count the votes meanwhile."""
    assert run("test-snapkv-recall", "--imaginary", arch_models / f"{arch}.gguf").strip() == "OK"


@pytest.mark.parametrize("arch", EACH_MEMORY)
def test_what_recalls_leave_as_it_is(run: Run, arch_models: Path, arch: str) -> None:
    """Logits before the first, protected rows, other sequences, what was saved, aborts; what is refused."""
    assert run("test-snapkv-recall-bounds", arch_models / f"{arch}.gguf").strip() == "OK"


@pytest.mark.parametrize("arch", EACH_MEMORY)
def test_many_sequences(run: Run, arch_models: Path, arch: str) -> None:
    """9 to 64, decoded together: as alone, and nothing left of what had been in their places."""
    assert run("test-snapkv-parallel", arch_models / f"{arch}.gguf").strip().endswith("OK")


@pytest.mark.parametrize("arch", EACH_MEMORY)
def test_others_between_chunks(run: Run, arch_models: Path, arch: str) -> None:
    """They decode while a prompt is prefilled: all as without each other. What is not theirs is refused."""
    assert run("test-snapkv-interleave", arch_models / f"{arch}.gguf").strip().endswith("OK")


def test_numbers_of_sequences_that_llama_cpp_ends_the_process_for(
    run: Run, arch_models: Path
) -> None:
    models = [arch_models / f"{arch}.gguf" for arch in ("kimi-linear-moe", "minimax-01-moe")]
    assert run("test-snapkv-parallel", *models).strip() == "OK"


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_gemma_is_exact(run: Run, arch_models: Path, kv_type: str) -> None:
    """Heads of 512, and layers that read the KV of others; a last chunk shorter than the window."""
    models = sorted([*arch_models.glob("gemma4*.gguf"), *arch_models.glob("gemma3n*.gguf")])
    assert len(models) == 4
    options = ["-n", "201", "-u", "49", "-g", "1,2,0", "-s", "2", "-t", kv_type]
    for line in run("test-snapkv-exact", *options, *models).splitlines():
        record = json.loads(line)
        assert record["cached"] >= 3, record
        assert [r["max_diff"] for r in record["runs"]] == [0, 0, 0], record


def test_votes_of_gemma(run: Run, arch_models: Path) -> None:
    """Heads of 512, and all layers that read one KV cache, against float64 on queries of llama_decode()."""
    models = sorted([*arch_models.glob("gemma4*.gguf"), *arch_models.glob("gemma3n*.gguf")])
    assert run("test-snapkv-shared", *models).strip() == "OK"


HYBRIDS = (
    "falcon-h1-dense",
    "granitehybrid-dense",
    "jamba-dense",
    "lfm2-dense",
    "lfm2moe-moe",
    "nemotron_h-dense",
    "plamo2-dense",
    "qwen35-dense",
    "qwen35moe-moe",
    "qwen3next-moe",
    "bailingmoe3-moe",
)
LATENT = ("deepseek2-moe", "deepseek2-heads-moe", "deepseek2-unabsorbed-moe", "mistral4-moe")


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("n_ubatch", [19, 50, 101])
def test_states_of_recurrent_layers(
    run: Run, arch_models: Path, n_ubatch: int, kv_type: str
) -> None:
    """In all layers, byte by byte; the first sequence's stays while the second has its prefill."""
    options = ["-n", "101", "-u", n_ubatch, "-g", "1,2,0", "-s", "2", "-t", kv_type]
    models = [arch_models / f"{arch}.gguf" for arch in HYBRIDS]
    records = [
        json.loads(line) for line in run("test-snapkv-exact", *options, *models).splitlines()
    ]
    assert len(records) == len(HYBRIDS)
    for record in records:
        assert record["state_bytes"] > 4096, record
        assert {(r["max_diff"], r["state_diff"]) for r in record["runs"]} == {(0, 0)}, record


@pytest.mark.parametrize("arch", HYBRIDS)
def test_sequences_with_recurrent_layers(run: Run, arch_models: Path, arch: str) -> None:
    """No way back, copies, aborts, out of memory, evictions from a state on; what is refused."""
    assert run("test-snapkv-hybrid", arch_models / f"{arch}.gguf").strip() == "OK"


def test_recurrent_layers_on_a_device(run: Run, arch_models: Path) -> None:
    """The same where the states are in memory that the host does not read."""
    assert (
        run("test-snapkv-hybrid", "--imaginary", arch_models / "qwen35-dense.gguf").strip() == "OK"
    )


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_latent_attention_is_exact(run: Run, arch_models: Path, kv_type: str) -> None:
    """Absorbed, with one head and with more than vote at once; and with K and V of each head."""
    options = ["-n", "201", "-u", "37", "-g", "1,2,0", "-s", "2", "-t", kv_type]
    models = [arch_models / f"{arch}.gguf" for arch in LATENT]
    records = [
        json.loads(line) for line in run("test-snapkv-exact", *options, *models).splitlines()
    ]
    assert [r["exact"] for r in records] == [True] * len(LATENT), records


def test_every_architecture_is_exact_or_refused(binaries: Path, arch_models: Path) -> None:
    records = architectures.sweep(binaries, arch_models)
    assert architectures.problems(records) == []
    assert architectures.table(records) == architectures.TABLE.read_text(), (
        "docs/architectures.md is not up to date: run scripts/architectures.py"
    )


@pytest.mark.parametrize(
    ("model", "kv_type"),
    [(demo_model, "f16"), (needle_model, "f16"), (needle_model, "q8_0"), (needle_model, "q4_0")],
)
def test_a_real_model_is_exact(run: Run, model: Callable[[], Path], kv_type: str) -> None:
    """Several ubatches, the last shorter than the window; G that divides the layers or not; two threads."""
    options = ["-n", "270", "-u", "128", "-b", "96", "-w", "32", "-g", "1,4,0", "-j", "2"]
    options += ["-t", kv_type]
    # threads that wait, sleep: those that spin hold up whatever else computes
    threads = {"OMP_THREAD_LIMIT": "2", "OMP_WAIT_POLICY": "passive"}
    record = json.loads(run("test-snapkv-exact", *options, model(), **threads))
    assert record["exact"]
    assert [r["max_diff"] for r in record["runs"]] == [0, 0, 0]
