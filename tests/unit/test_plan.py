"""Plans: bytes by part against records of real runs, and what fits."""

import itertools
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from snapkv_local.bench import metadata
from snapkv_local.bench.blueprint import Blueprint
from snapkv_local.bench.shapes import SHAPES
from snapkv_local.cli import main
from snapkv_local.config import SnapKVConfig
from snapkv_local.errors import ConfigError, ModelFileError, UnsupportedModelError
from snapkv_local.models import files
from snapkv_local.models.resolve import demo_model
from snapkv_local.plan import compute, devices, fit, layers, memory
from snapkv_local.plan.layers import CPU, Part, Place
from snapkv_local.plan.memory import compressed, plain
from snapkv_local.plan.model import read_model
from snapkv_local.report import units

RESULTS = Path(__file__).parents[2] / "results"
GPUS = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("gpu-*.json"))]
LARGE = 64 << 20
MIB, GIB = 1 << 20, 1 << 30
PARTS = {
    "kv": "bytes_kv",
    "kv_group": "bytes_kv_group",
    "hidden": "bytes_hidden",
    "mask": "bytes_mask",
    "compute": "bytes_compute",
    "weights_lent": "bytes_weights_lent",
    "vault": "bytes_vault",
}


def invoke(*arguments):
    return CliRunner().invoke(main, ["plan", *map(str, arguments)])


def estimate_of(run, model):
    s = run["settings"]
    place = Place(True, None if s["n_gpu_layers"] < 0 else s["n_gpu_layers"])
    if s["config"] is None:
        return plain(model, s["n_prompt"], s["decode_cells"], s["kv_type"], place)
    stats = run["stats"]
    return compressed(
        model, s["n_prompt"], SnapKVConfig(**s["config"]), s["kv_type"], place,
        group=stats["layer_group"], n_ubatch=stats["n_ubatch"], hidden_host=stats["bytes_hidden_host"] > 0,
    )  # fmt: skip


# Runs of engines that kept the queries of the window's chunk until the end of its graph; now they are copied
# behind their attention, and a compute buffer is smaller by them
QUERIES_STAYED = (
    "f54f9e7", "d93c8dffc", "4deab04", "f66cb8439", "3fa774917",
    "041fb8a38e08b41f86f18b2040188a4a4799251a", "017708b425c055a71e27dd323b0296d961b82a7d", "2f22a84",
    "50090038e094e428d4bc5faaa03930f6e4a403ca",
)  # fmt: skip


def bytes_of_queries(commit, n_prompt, stats, model, compute_buffer):
    """What the last chunk took more in a run, where it was the largest then."""
    if commit not in QUERIES_STAYED:
        return 0
    n = stats.get("n_ubatch", layers.N_UBATCH)
    n_q = max(model.layers[il].n_voting for il in layers.cached_layers(model))
    n_q *= min(stats["layer_group"], model.shape.n_layer - 1)
    last = (n_prompt % n or n) * (compute_buffer.main // n + 4 * n_q)
    return max(0, last - compute_buffer.main)


RUNS = [
    {**run, "memory": int(gpu["device"]["memory.total"].split()[0]) * MIB}
    for gpu in GPUS
    for run in gpu["runs"]
    if run["settings"]["n_seq"] == 1 and run["settings"]["n_ubatch"] == 512
]


@pytest.mark.parametrize("run", RUNS, ids=[run["case"] for run in RUNS])
def test_a_gpu_record_is_foreseen(run, write_metadata):
    model = read_model(write_metadata(SHAPES[run["settings"]["model"]]))
    estimate = estimate_of(run, model)
    stats = run["stats"]
    former = 0
    if stats:
        n_prompt, buffer = run["settings"]["n_prompt"], estimate.parts["compute"]
        former = bytes_of_queries(run["commit"], n_prompt, stats, model, buffer)
    for part, name in PARTS.items() if stats else ():
        found = estimate.parts.get(part, Part(0)).total
        measured = stats.get(name, 0)
        if part == "kv":  # states of recurrent layers are a part of their own
            measured -= stats.get("bytes_recurrent", 0)
            assert estimate.parts.get("recurrent", Part(0)).total == stats.get("bytes_recurrent", 0)
        # most are counted to the byte; compute buffers have small inputs, too, and experts
        rel = 0.02 if part == "compute" and model.layers[0].n_expert_used else 0.001
        found += former if part == "compute" else 0
        assert found == pytest.approx(measured, rel=rel, abs=1 << 15), part
    # llama.cpp's own way with layers in host memory takes more of the driver's (layers.py), and so do
    # kernels of experts and states
    behind = run["settings"]["n_gpu_layers"] >= 0 and not stats
    others = run["settings"]["model"] not in ("llama31-8b", "llama2-7b")
    assert estimate.peak + former == pytest.approx(
        run["peak_device"], rel=0.011 if behind or others else 0.005
    )


@pytest.mark.parametrize("run", [r for r in RUNS if r["stats"]], ids=lambda run: run["case"])
def test_the_engines_choice_is_foreseen(run, write_metadata):
    s, stats = run["settings"], run["stats"]
    place = Place(True, None if s["n_gpu_layers"] < 0 else s["n_gpu_layers"])
    model = read_model(write_metadata(SHAPES[s["model"]]))
    free = s["leave_free"] or run["memory"]
    task = fit.Task(model, SnapKVConfig(**s["config"]), s["kv_type"], place, free)
    found = task.auto(s["n_prompt"])
    assert (found.layer_group, found.n_ubatch) == (stats["layer_group"], stats["n_ubatch"])
    assert found.hidden_host == (stats["bytes_hidden_host"] > 0)


def test_the_cpu_record_is_foreseen():
    record = json.loads((RESULTS / "memory-smollm2-8k.json").read_text())
    s = record["settings"]
    model = read_model(demo_model())
    config = SnapKVConfig(budget=s["budget"], decode_cells=s["decode_cells"])
    for run in record["runs"]:
        if run["stats"] is None:
            found = plain(model, s["n_prompt"], s["decode_cells"], "f16")
        else:
            stats = run["stats"]
            found = compressed(model, s["n_prompt"], config, "f16", group=stats["layer_group"])
            n_prompt, buffer = s["n_prompt"], found.parts["compute"]
            former = bytes_of_queries(record["commit"], n_prompt, stats, model, buffer)
            for part in ("kv", "kv_group", "hidden", "mask", "compute"):
                expected = found.parts[part].main + (former if part == "compute" else 0)
                assert expected == pytest.approx(stats[PARTS[part]], rel=0.01), part
        assert found.peak == pytest.approx(run["peak_rss"], rel=0.06)


def test_full_caches_by_type(write_metadata):
    model = read_model(write_metadata(SHAPES["llama31-8b"]))
    found = {t: plain(model, 130_048, 1024, t).parts["kv"].main for t in layers.KV_TYPES}
    assert found == {"f16": 16 * GIB, "q8_0": 16 * GIB * 17 // 32, "q4_0": 16 * GIB * 9 // 32}


def test_weights_by_place(write_metadata):
    model = read_model(write_metadata(SHAPES["llama31-8b"]))
    embedding, layer = 128_256 * 4096 * 18 // 32, model.bytes_layers[0]
    assert (model.bytes_input, model.bytes_tied) == (embedding, 0)
    assert memory._weights(model, CPU) == Part(model.bytes_weights)
    all_layers = memory._weights(model, Place(True))
    assert all_layers.host == embedding
    assert all_layers.total == model.bytes_weights
    half = memory._weights(model, Place(True, 17))
    assert half.host == embedding + 16 * layer
    tied = read_model(write_metadata(SHAPES["llama32-1b"]))
    found = memory._weights(tied, Place(True))
    assert found.total == tied.bytes_weights + tied.bytes_input  # the GPU has a copy


def test_a_sliding_window_keeps_its_size(write_metadata):
    model = read_model(write_metadata(SHAPES["gemma3-4b"]))
    assert layers.cached_layers(model) == [5, 11, 17, 23, 29]
    row = layers.row_bytes(model, 0, "f16")
    found = plain(model, 130_048, 1024, "f16").parts["kv"].main
    assert found == row * (5 * 131_072 + 29 * 1536)


def test_experts_count_as_many_as_are_used(write_metadata):
    model = read_model(write_metadata(SHAPES["qwen3-30b-a3b"]))
    assert {layer.n_ff for layer in model.layers} == {8 * 768}


def test_cells_for_the_most_rows(write_metadata):
    model = read_model(write_metadata(SHAPES["tiny"]))
    few = compressed(model, 8000, SnapKVConfig(budget=512), "f16", group=1)
    config = SnapKVConfig(budget=512, min_coverage=0.9, max_budget=2048)
    more = compressed(model, 8000, config, "f16", group=1)
    assert more.parts["kv"].main * (512 + 1024) == few.parts["kv"].main * (2048 + 1024)


def test_a_vault_in_a_folder_takes_no_memory(write_metadata, tmp_path):
    model = read_model(write_metadata(SHAPES["llama31-8b"]))
    held = compressed(model, 130_048, SnapKVConfig(vault="ram"), "f16", group=1, place=Place(True))
    assert held.parts["vault"].host == pytest.approx(16 * GIB, rel=0.01)
    filed = compressed(model, 130_048, SnapKVConfig(vault=tmp_path), "f16", group=1)
    assert "vault" not in filed.parts


def test_a_prompt_within_the_budget_takes_no_staging(write_metadata):
    model = read_model(write_metadata(SHAPES["tiny"]))
    found = compressed(model, 500, SnapKVConfig(budget=512), "f16", group=1)
    assert set(found.parts) == {"weights", "kv", "compute", "process"}


def test_stock_ops_take_more(write_metadata):
    model = read_model(write_metadata(SHAPES["llama31-8b"]))
    take = {
        ops: compressed(model, 130_048, SnapKVConfig(ops=ops), "f16", Place(True), group=1).parts[
            "compute"
        ]
        for ops in ("auto", "ggml")
    }
    assert take["ggml"].main > take["auto"].main


@pytest.mark.parametrize("name", ["plain q8_0", "ours G=1", "ours auto"])
@pytest.mark.parametrize("place", [CPU, Place(True)])
def test_the_largest_prompt_is_the_largest(name, place, write_metadata):
    model = read_model(write_metadata(SHAPES["llama31-8b"]))
    task = fit.Task(model, SnapKVConfig(), "f16", place, 8 * GIB)
    way = task.ways()[name]
    n = fit.largest_prompt(task, way)
    assert n > 0 and task.fits(way(n)) and not task.fits(way(n + 256))


def test_auto_takes_the_smallest_plan(write_metadata):
    model = read_model(write_metadata(SHAPES["llama31-8b"]))
    task = fit.Task(model, SnapKVConfig(), "f16", Place(True), 1 << 40)

    def plan(task, n_prompt=131_072):
        found = task.auto(n_prompt)
        return found.layer_group, found.n_ubatch, found.hidden_host

    assert [plan(task, n) for n in (4096, 131_072)] == [(1, 512, False)] * 2
    assert plan(replace(task, place=CPU)) == (1, 512, False)
    assert plan(replace(task, config=SnapKVConfig(layer_group=32)))[0] == 32
    assert plan(replace(task, config=SnapKVConfig(hidden_state="host"))) == (1, 512, True)

    # less memory: the hidden state on the host, then smaller chunks
    smaller = [(1, 512, False), (1, 512, True), (1, 256, True)]
    lasting = task.auto(131_072).lasting.main
    for above, below in itertools.pairwise(smaller):
        wanted = memory.engine_estimate(model, 131_072, task.config, "f16", *above)
        assert plan(replace(task, memory=lasting + wanted - 1)) == below

    # a KV row of four layers takes 512 bytes, and the hidden state that they do without 2048
    made = Blueprint("llama", 4, 512, 1024, 8, 1, 32, 1024, 10_000.0)
    narrow = replace(task, model=read_model(write_metadata(made)))
    for place in (CPU, Place(True)):
        assert plan(replace(narrow, place=place), 8192) == (4, 512, False)
    assert plan(replace(narrow, config=SnapKVConfig(hidden_state="host")), 8192)[0] == 1


def test_changes_make_it_fit(write_metadata):
    model = read_model(write_metadata(SHAPES["llama31-8b"]))
    config = SnapKVConfig(layer_group=32, hidden_state="device")
    task = fit.Task(model, config, "f16", Place(True), 8 * GIB)
    assert not task.fits(task.auto(130_048))
    found = {change.option: change.peak for change in fit.changes(task, 130_048)}
    assert "--layer-group 1" in found
    assert max(found.values()) <= 8 * GIB
    tiny = replace(task, memory=GIB)
    assert fit.largest_prompt(tiny, tiny.auto) == 0


@pytest.mark.parametrize("place", [CPU, Place(True)])
@pytest.mark.parametrize("name", ["plain f16", "ours auto"])
def test_a_smaller_model_that_drafts_is_counted(name, place, write_metadata):
    main, small = (read_model(write_metadata(SHAPES[n])) for n in ("llama31-8b", "llama32-1b"))
    task = fit.Task(main, SnapKVConfig(), "f16", place, 80 * GIB)
    alone, drafting, of_small = (
        each.ways()[name](32_768)
        for each in (task, replace(task, draft=small), replace(task, model=small))
    )
    assert "draft" not in alone.parts
    # weights, cache and what generation takes; its prefill takes less than that of the large one
    stays = of_small.lasting.main - of_small.parts["process"].main + of_small.decode.main
    assert drafting.parts["draft"].main == stays == drafting.peak - alone.peak
    # the other way round the larger prefill is the draft's
    odd = replace(task, model=small, draft=main).ways()[name](32_768)
    assert odd.peak >= of_small.lasting.main + of_small.decode.main + alone.peak - (
        alone.parts["process"].main
    )


def test_conversations_have_caches_of_what_drafts(write_metadata):
    main, small = (read_model(write_metadata(SHAPES[n])) for n in ("llama31-8b", "llama32-1b"))
    task = fit.Task(main, SnapKVConfig(), "f16", Place(True), 80 * GIB)
    (_, alone), (_, of_small), (_, both) = (
        fit.conversations(each, 32_768, 8)
        for each in (task, replace(task, model=small), replace(task, draft=small))
    )
    assert both == alone + of_small
    assert alone > of_small > 0


def test_states_before_drafts_are_counted(write_metadata):
    main = read_model(write_metadata(SHAPES["qwen35-9b"]))
    task = fit.Task(main, SnapKVConfig(), "f16", Place(True), 80 * GIB)
    alone, looking = (each.auto(32_768) for each in (task, replace(task, lookup=True)))
    states = alone.parts["recurrent"]
    assert looking.parts["looks"] == states
    assert looking.peak == alone.peak + states.main
    (_, of_one), (_, of_two) = (
        fit.conversations(each, 32_768, 8) for each in (task, replace(task, draft=main))
    )
    assert of_two == 2 * (of_one + states.main)


def test_split_models_are_summed(write_metadata, tmp_path):
    whole = write_metadata(SHAPES["tiny"])
    for i in (1, 2):
        (tmp_path / f"m-0000{i}-of-00002.gguf").write_bytes(whole.read_bytes())
    found = read_model(tmp_path / "m-00002-of-00002.gguf")
    assert sum(found.bytes_layers) == 2 * sum(read_model(whole).bytes_layers)
    (tmp_path / "m-00001-of-00002.gguf").unlink()
    with pytest.raises(
        ModelFileError, match=r"00001-of-00002\.gguf: does not exist; a split model"
    ):
        read_model(tmp_path / "m-00002-of-00002.gguf")


# recurrent state of one sequence in MiB, as llama.cpp's logs have it where a source is named
@pytest.mark.parametrize(
    ("name", "n_cached", "row", "mib"),
    [
        ("qwen35-27b", 16, 65_536, 149.625),  # ggml-org/llama.cpp#26419
        ("qwen35-9b", 8, 32_768, 50.25),
        ("qwen35-35b-a3b", 10, 20_480, 62.8125),
        ("qwen3next-80b-a3b", 12, 24_576, 75.375),
        ("granite4-h-small", 4, 16_384, 147.48),
        ("nemotron3-nano", 6, 6_144, 47.617),
        ("lfm2-8b", 6, 12_288, 0.28125),
    ],
)
def test_a_hybrid_keeps_rows_and_states(name, n_cached, row, mib, write_metadata):
    model = read_model(write_metadata(SHAPES[name]))
    cached = layers.cached_layers(model)
    assert len(cached) == n_cached
    assert sum(layers.row_bytes(model, il, "f16") for il in cached) == row
    found = compressed(model, 130_560, SnapKVConfig(budget=2048), "q8_0", Place(True), group=1)
    assert found.parts["recurrent"] == Part(pytest.approx(mib * MIB, rel=1e-4))
    assert found.lasting.main == sum(
        found.parts[p].main for p in ("weights", "kv", "recurrent", "process")
    )
    # one to go back to, and those of a vault, in host memory
    assert found.parts["states"] == Part(0, found.parts["recurrent"].main)
    vault = SnapKVConfig(budget=2048, vault="ram")
    kept = compressed(model, 130_560, vault, "q8_0", Place(True), group=1).parts["states"]
    assert kept == Part(0, 7 * found.parts["recurrent"].main)
    full = plain(model, 130_560, 512, "f16")
    assert "states" not in full.parts
    assert full.parts["kv"].main == row * 131_072
    assert full.parts["recurrent"].main == found.parts["recurrent"].main  # whatever the type


def test_states_stay_where_their_layers_are(write_metadata):
    model = read_model(write_metadata(SHAPES["qwen35-27b"]))
    found = plain(model, 8192, 512, "f16", Place(True, 33)).parts
    assert found["recurrent"].main == found["recurrent"].host
    assert found["kv"].main == found["kv"].host
    assert not layers.lends(model, Place(True, 33))


def test_heads_of_two_widths(write_metadata):
    model = read_model(write_metadata(SHAPES["gemma4-26b-a4b"]))
    found = plain(model, 130_560, 512, "f16").parts["kv"].main
    assert found == 2 * 2 * (5 * 2 * 512 * 131_072 + 25 * 8 * 256 * 1536)


def test_layers_that_predict_more_tokens_are_not_loaded(write_metadata, monkeypatch):
    plain_model = read_model(write_metadata(SHAPES["qwen35-9b"]))
    more = replace(
        SHAPES["qwen35-9b"], n_layer=33,
        extra={**SHAPES["qwen35-9b"].extra, "nextn_predict_layers": 1},
    )  # fmt: skip
    model = read_model(write_metadata(more))
    assert model.layers == plain_model.layers
    assert model.bytes_weights == plain_model.bytes_weights


def test_the_embeddings_that_layers_add_stay_with_the_host(write_metadata):
    model = read_model(write_metadata(SHAPES["gemma4-e4b"]))
    per_layer = 262_144 * 42 * 256 * 18 // 32
    found = memory._weights(model, Place(True))
    assert found.host == model.bytes_input == per_layer + model.bytes_tied
    assert found.total == model.bytes_weights + model.bytes_tied


@pytest.mark.parametrize(
    ("arch", "says"),
    [("deepseek32", "of a kind of its own"), ("bloom", "ALiBi"), ("mamba2", "has no KV cache")],
)
def test_what_the_engine_refuses_is_named(arch, says, write_metadata):
    with pytest.raises(UnsupportedModelError, match=says):
        read_model(write_metadata(replace(SHAPES["tiny"], arch=arch)))


def test_latent_attention_keeps_one_row(write_metadata):
    model = read_model(write_metadata(SHAPES["glm47-flash"]))
    found = plain(model, 130_560, 512, "f16").parts["kv"].main
    assert found == 2 * 47 * 576 * 131_072


def test_layers_that_read_another_ones_rows_have_none(write_metadata):
    model = read_model(write_metadata(SHAPES["gemma4-e4b"]))
    assert layers.cached_layers(model) == [5, 11, 17, 23]
    found = plain(model, 130_560, 512, "f16").parts["kv"].main
    assert found == 2 * 2 * (4 * 2 * 512 * 131_072 + 20 * 2 * 256 * 1024)


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("8GiB", 8 * GIB),
        ("8GB", 8 * 10**9),
        ("8192MiB", 8 * GIB),
        ("8g", 8 * GIB),
        ("1.5 GiB", 3 * GIB // 2),
        ("8B", 8),
        ("8589934592", 8 * GIB),
    ],
)
def test_sizes(text, n):
    assert units.parse_size(text) == n


@pytest.mark.parametrize("text", ["", "0", "0GiB", "GiB", "8QB", "8 ib", "-1GB"])
def test_no_sizes(text):
    with pytest.raises(ConfigError, match="is not a size in bytes; write 8GiB"):
        units.parse_size(text)


@pytest.mark.parametrize("text", ["8", "8192", "1.5", "999999"])
def test_a_small_number_needs_its_unit(text):
    with pytest.raises(ConfigError, match=rf"has no unit; write {text}GiB, or {text}B if"):
        units.parse_size(text)


@pytest.mark.parametrize(
    ("value", "says"), [(0.0, "0.000"), (0.05, "0.050"), (0.00042, "0.0004"), (1.5, "1.500")]
)
def test_scores_are_not_rounded_to_zero(value, says):
    assert units.score(value) == says


def test_the_table_of_devices():
    found = devices.known()
    assert len(found) >= 30
    assert len({device.name for device in found}) == len(found)
    assert all(device.source and 0 < device.usable <= device.memory for device in found)
    assert {device.kind for device in found} == {"cuda", "metal", "hip"}


@pytest.mark.parametrize(
    ("name", "is_named"),
    [
        ("RTX 4060", "NVIDIA GeForce RTX 4060"),
        ("rtx 4060 laptop", "NVIDIA GeForce RTX 4060 Laptop"),
        ("4090", "NVIDIA GeForce RTX 4090"),
        ("H200", "NVIDIA H200"),
        ("M1 Max 64 GB", "Apple M1 Max 64GB"),
        ("7900 xtx", None),
    ],
)
def test_devices_by_name(name, is_named):
    found = devices.find(name)
    assert found.name == (is_named or "AMD Radeon RX 7900 XTX")


def test_what_a_device_leaves():
    assert devices.find("M1 16GB").usable == pytest.approx(10_922.67 * MIB, rel=1e-4)
    assert devices.find("M1 Max 64GB").usable == 49_152 * MIB


def test_an_unknown_device_names_the_nearest():
    result = invoke("demo", "--device", "RTX 4061")
    assert result.exit_code == 1
    assert "is not in the table of devices; write one of: " in result.stderr
    assert "NVIDIA GeForce RTX 4060" in result.stderr


def test_json_of_a_file_without_weights(write_metadata):
    result = invoke(
        write_metadata(SHAPES["llama31-8b"]), "--ctx", "128k", "--memory", "8GiB", "--json"
    )
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    ways = {way["name"]: way for way in found["ways"]}
    assert [way["fits"] for way in ways.values()] == [False, False, False, True, True]
    by_memory = {name: way["largest_prompt_by_memory"] for name, way in ways.items()}
    assert by_memory["ours auto"] >= by_memory["ours G=1"] > 131_072
    assert by_memory["plain q4_0"] > by_memory["plain f16"] > 0
    assert found["warnings"] == []


def test_the_largest_prompt_is_one_that_the_model_was_trained_for(write_metadata, monkeypatch):
    """Less where memory is short, more where --ctx asks for more."""
    monkeypatch.setattr(metadata, "N_CTX", 131_072)
    path = write_metadata(SHAPES["llama31-8b"])

    def largest(*options):
        result = invoke(path, *options, "--memory", "8GiB", "--json")
        assert result.exit_code == 0, result.stderr
        return {
            way["name"]: (way["largest_prompt"], way["largest_prompt_by_memory"])
            for way in json.loads(result.stdout)["ways"]
        }

    usual = largest("--ctx", "64k", "--decode-cells", "2k")
    assert usual["ours G=1"][0] == 131_072 - 2048 < usual["ours G=1"][1]
    assert usual["plain f16"][0] == usual["plain f16"][1] < 64 * 1024
    asked = largest("--ctx", "256k", "--decode-cells", "2k")
    assert asked["ours G=1"] == (usual["ours G=1"][1], usual["ours G=1"][1])


def test_both_largest_prompts_are_shown_where_they_differ(write_metadata, monkeypatch):
    monkeypatch.setattr(metadata, "N_CTX", 131_072)
    path = write_metadata(SHAPES["llama31-8b"])
    shown = invoke(path, "--ctx", "64k", "--memory", "8GiB").stdout
    assert "prompt of 64,512 tokens, and room for 1,024 new ones" in shown
    assert "by memory alone" in shown and "trained for 131,072 tokens" in shown
    assert "by memory alone" not in invoke(path, "--ctx", "256k", "--memory", "8GiB").stdout


def test_a_file_with_a_hole_for_weights_passes_the_check_of_models(write_metadata):
    path = write_metadata(SHAPES["llama31-8b"], whole=True)
    files.check(path)
    model = read_model(path)
    assert model.shape.n_vocab == 128_256
    assert model.bytes_weights == pytest.approx(4.52e9, rel=0.01)


def test_what_does_not_fit_says_what_to_do(write_metadata):
    path = write_metadata(SHAPES["llama31-8b"])
    result = invoke(path, "--ctx", "128k", "--memory", "6GiB", "--hidden-state", "device")
    assert result.exit_code == 0
    assert "It does not fit" in result.stdout
    assert "--hidden-state host" in result.stdout
    assert "--ctx" in result.stdout
    hopeless = invoke(path, "--ctx", "128k", "--memory", "1GiB", "--gpu-layers", "0")
    assert "no setting changes that" in hopeless.stdout


def test_a_context_beyond_the_training_is_warned_of():
    result = invoke("demo", "--ctx", "128k", "--memory", "8GiB")
    assert result.exit_code == 0
    assert "trained for 8,192 tokens" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--memory", "8GiB", "--device", "H100"), 2, "give one"),
        (("--memory", "8GiB", "--measure"), 2, "leave out --memory"),
        (("--model-draft", "demo", "--measure"), 2, "leave out --model-draft"),
        (("--mtp", "--measure"), 2, "leave out --model-draft and --mtp"),
        (("--mtp", "--model-draft", "demo"), 2, "give one of them"),
        (("--mtp",), 1, "has no prediction heads"),
        (("--memory", "much"), 1, "write 8GiB"),
        (("--ctx", "512"), 1, "leaves no prompt"),
    ],
)
def test_errors(arguments, code, says):
    result = invoke("demo", *arguments)
    assert (result.exit_code, says in result.stderr) == (code, True), result.stderr


def test_it_needs_no_native_library(tmp_path):
    code = (
        "import sys; from snapkv_local.cli import main\n"
        "try: main(['plan', 'demo', '--ctx', '8k', '--json'])\n"
        "finally: print('llama_cpp' in sys.modules, 'numpy' in sys.modules, file=sys.stderr)"
    )
    environment = {"SNAPKV_LOCAL_LIB": str(tmp_path), "PATH": ""}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "False" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("file", "source", "ours"),
    [
        ("staging/plan.h", r"MARGIN = (\d+)u << 20;", memory.MARGIN >> 20),
        ("staging/plan.cpp", r"MIN_CHUNK = (\d+);", fit._MIN_CHUNK),
        ("staging/staging.h", r"MASK_ALIGNMENT = (\d+);", memory.MASK_ALIGNMENT),
        ("prefill/rows.cpp", r"MIN_NEW = (\d+);", memory.MIN_NEW),
        ("state/context.h", r"LLAMA_SNAPKV_N_KV_PAD = (\d+);", layers.N_PAD),
        ("api/context.cpp", r"cpu_only \? (\d+) : LLAMA_SNAPKV_N_KV_PAD", layers.N_PAD_CPU),
        ("ops/snapkv-op.h", r"splits = \(n \+ \d+\) / (\d+);", compute.KEYS_PER_SPLIT),
        ("ops/snapkv-op.h", r"splits > (\d+) \? \1", compute.MAX_SPLITS),
    ],
)
def test_constants_are_those_of_the_engine(file, source, ours):
    text = (RESULTS.parent / "csrc" / file).read_text(encoding="utf-8")
    assert [int(number) for number in re.findall(source, text)] == [ours]
