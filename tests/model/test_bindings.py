"""The ctypes mirror of snapkv.h, and the library that it is bound to."""

import ctypes
import json
import shutil
import typing

import pytest
from click.testing import CliRunner
from refused import refused

import backends
from snapkv_local import SnapKVConfig
from snapkv_local.bench import proof as bench_proof
from snapkv_local.cli import main
from snapkv_local.errors import NativeError, OutOfMemoryError
from snapkv_local.native import library


def test_native_defaults_are_those_of_the_configuration():
    from snapkv_local.native import api, structs, support

    theirs, ours = api.llama_snapkv_default_params(), support.make_params(SnapKVConfig())
    for name, *_ in structs.llama_snapkv_params._fields_:
        assert getattr(theirs, name) == getattr(ours, name), name


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("pooling", "POOLINGS"),
        ("aggregation", "AGGREGATIONS"),
        ("hidden_state", "HIDDEN_STATES"),
        ("ops", "OPS"),
    ],
)
def test_every_choice_of_a_setting_has_a_native_value(name, table):
    from snapkv_local.native import support

    numbers = getattr(support, table)
    assert set(numbers) == set(typing.get_args(typing.get_type_hints(SnapKVConfig)[name]))
    for choice, number in numbers.items():
        assert getattr(support.make_params(SnapKVConfig(**{name: choice})), name) == number


def test_numbers_of_the_configuration_reach_the_engine():
    from snapkv_local.native import support

    params = support.make_params(SnapKVConfig(self_weight=0.5, layer_group=3, n_ubatch=256))
    assert (params.self_weight, params.layer_group, params.n_ubatch) == (0.5, 3, 256)


def test_the_cpu_has_fused_ops_and_an_unknown_device_has_none():
    from snapkv_local.native import api

    assert api.llama_snapkv_has_fused_ops(b"CPU")
    assert not api.llama_snapkv_has_fused_ops(b"no such device")


def test_the_cpu_is_proven_and_others_are_not():
    from snapkv_local.native import api, support

    assert [api.llama_snapkv_proven(name) for name in (b"CPU", b"CUDA")] == [True, True]
    assert not any(api.llama_snapkv_proven(name) for name in (b"Vulkan", b"MTL", b"ROCm", b""))
    assert support.unproven_devices() == []


def test_the_register_is_what_the_engine_refuses_by():
    from snapkv_local.native import api, register

    lines = register.register()
    assert [line.name for line in lines][:2] == ["CPU", "CUDA"]
    for line in lines:
        assert api.llama_snapkv_proven(line.name.encode()) == line.proven
        assert register.find(line.name) == line
    assert register.find("RPC[host:50052]") == register.find("RPC")
    assert register.find("a new one") is None
    cuda = register.find("CUDA")
    assert cuda is not None and cuda.state == "proven"
    vulkan = register.find("Vulkan")
    assert vulkan is not None
    assert vulkan.path == "ggml's ops, slower; masks are copied"
    assert vulkan.checked and vulkan.state.startswith("checked when they are loaded; refused: ")
    metal = register.find("MTL")
    assert metal is not None and (metal.state, metal.checked) == ("refused", False)


def test_the_page_of_gpus_shows_the_register():
    text = backends.PAGE.read_text(encoding="utf-8")
    assert text == backends.render(text), "run `make tables`"


SMALL = {"head_dim": 64, "n_head": 4, "n_head_kv": 2, "n_tokens": 520}


@pytest.mark.parametrize(("kv_type", "group"), [("f16", 1), ("q8_0", 0)])
def test_a_proof_of_the_processor(kv_type, group):
    from snapkv_local.native import proof

    question = proof.Question(**SMALL, kv_type=kv_type, layer_group=group)
    found = proof.prove("CPU", question)
    assert (found["max_diff"], found["max_diff_cpu"], found["ratio_fused"]) == (0, 0, 1)
    assert 0 <= found["max_diff_ops"] < 1e-4
    assert (found["head_dim"], found["kv_type"], found["layer_group"]) == (64, kv_type, group)


def test_a_proof_that_cannot_be_computed():
    from snapkv_local.native import proof

    with refused(NativeError, "Nowhere"):
        proof.prove("Nowhere", proof.Question(**SMALL))
    with refused(NativeError, "CPU"):  # 34 bytes
        proof.prove("CPU", proof.Question(**SMALL | {"head_dim": 32}, kv_type="q8_0"))


def test_doctor_proves_the_processor_in_processes_of_their_own(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_proof, "HEADS", (SMALL,))
    monkeypatch.setattr(bench_proof, "BENCH_PROMPT", 600)
    monkeypatch.setattr(bench_proof, "BENCH_BUDGET", 128)
    monkeypatch.delenv("COLUMNS", raising=False)  # no line is wrapped
    out = tmp_path / "proof.json"
    result = CliRunner().invoke(main, ["doctor", "--prove", "--device", "CPU", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "yes, difference 0 in 6 cases" in result.output
    record = json.loads(out.read_text())
    (device,) = record["devices"]
    assert (device["exact"], device["ops_agree"], device["fused"]) == (True, True, 1.0)
    assert all(record["run"][name]["prefill_tokens_per_second"] > 0 for name in ("full", "snapkv"))


@pytest.mark.parametrize("n_seq_max", [1, 8, 9, 16, 64])
def test_models_are_supported_for_many_sequences(llm, n_seq_max):
    import llama_cpp

    from snapkv_local.native import support

    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_seq_max = 512 * n_seq_max, 64, n_seq_max
    assert support.supported(llm.model, params, support.make_params(llm.snapkv)) is None
    params.n_batch = n_seq_max - 1
    if params.n_batch > 0:  # llama.cpp would end the process
        reason = support.supported(llm.model, params, support.make_params(llm.snapkv))
        assert reason is not None and f"is less than n_seq_max {n_seq_max}" in reason


@pytest.mark.parametrize("struct", ["params", "stats", "seq_info", "prompt"])
def test_structs_have_the_sizes_of_the_library(llm, struct):
    from snapkv_local.native import api, structs, support

    # the library refuses another size, so a field that one side lacks does not pass
    llm.prefill([1000])
    if struct == "params":
        params = support.make_params(llm.snapkv, llm.keep_scores)
        assert api.llama_snapkv_set_params(llm.ctx, params)
        params.size += 8
        assert not api.llama_snapkv_set_params(llm.ctx, params)
        return
    if struct == "prompt":
        tokens = (ctypes.c_int32 * 1)(1000)
        prompt = structs.llama_snapkv_prompt(n_tokens=1, tokens=tokens)
        assert api.llama_snapkv_prefill(llm.ctx, ctypes.byref(prompt)) == 0
        prompt.size += 8
        assert api.llama_snapkv_prefill(llm.ctx, ctypes.byref(prompt)) == api.RC_REFUSED
        return
    kind = getattr(structs, f"llama_snapkv_{struct}")
    for extra, accepted in ((0, True), (8, False)):
        value = kind(size=ctypes.sizeof(kind) + extra)
        arguments = (0, ctypes.byref(value)) if struct == "seq_info" else (ctypes.byref(value),)
        assert getattr(api, f"llama_snapkv_get_{struct}")(llm.ctx, *arguments) == accepted


def test_the_reason_of_a_failure_chooses_the_error(monkeypatch):
    from snapkv_local.native import failure

    reasons = {
        b"out of memory: the mask takes 3.0 MiB on CPU": OutOfMemoryError,
        b"failed to allocate buffer for kv cache": OutOfMemoryError,
        b"llama_decode() failed with -3": NativeError,
    }
    for reason, kind in reasons.items():
        monkeypatch.setattr(
            "snapkv_local.native.api.llama_snapkv_last_error", lambda reason=reason: reason
        )
        with pytest.raises(kind) as caught:
            failure.fail("llama_snapkv_prefill")
        assert type(caught.value) is kind
        assert caught.value.problem == reason.decode()


def test_llama_cpp_that_was_imported_first_with_another_library(tmp_path, python):
    other = tmp_path / "lib"
    shutil.copytree(library.find(), other)
    code = "import llama_cpp; from snapkv_local import Llama"
    result = python(code, LLAMA_CPP_LIB_PATH=str(other), MTMD_CPP_LIB=str(other))
    assert result.returncode == 1
    error = result.stderr.splitlines()[-1]
    assert error.startswith("snapkv_local.errors.LibraryError: llama_cpp: was imported before")
    assert str(other) in error


def test_llama_cpp_that_was_imported_first_with_our_library(python):
    folder = str(library.find())
    code = (
        "import llama_cpp; from snapkv_local import Llama; print(llama_cpp.Llama in Llama.__mro__)"
    )
    result = python(code, LLAMA_CPP_LIB_PATH=folder, MTMD_CPP_LIB=folder)
    assert result.stdout == "True\n", result.stderr


def test_an_unpatched_library_is_named(tmp_path, python):
    # as if it were one: once llama_cpp is bound, the library finds no further function
    code = (
        "import snapkv_local.native.devices, llama_cpp.llama_cpp as c\n"
        "del type(c._lib).__getattr__\n"
        "import snapkv_local.native.api"
    )
    result = python(code)
    assert "holds a llama.cpp without llama_snapkv_default_params()" in result.stderr
