"""What goes wrong, says so, and leaves the context usable."""

from pathlib import Path

import pytest
from refused import refused

from snapkv_local import Llama, SnapKVConfig
from snapkv_local.errors import (
    ConfigError,
    ModelFileError,
    OutOfMemoryError,
    PromptError,
    UnsupportedModelError,
)


def test_flash_attention_turned_off(model_path):
    with pytest.raises(ConfigError, match=r"flash_attn=False: .*; leave it out, or turn it on"):
        Llama(model_path, snapkv=SnapKVConfig(), flash_attn=False)


def test_embeddings(model_path):
    with pytest.raises(ConfigError, match=r"embedding=True: .*; leave snapkv out"):
        Llama(model_path, snapkv=SnapKVConfig(), embedding=True)


@pytest.mark.parametrize("snapkv", [None, SnapKVConfig()])
def test_missing_model(tmp_path, snapkv):
    with refused(ModelFileError, tmp_path / "no.gguf"):
        Llama(str(tmp_path / "no.gguf"), snapkv=snapkv)


@pytest.fixture
def alibi_model(write_model):
    """A small MPT: its attention has ALiBi biases."""

    def add(writer):
        writer.add_layer_norm_eps(1e-5)
        writer.add_max_alibi_bias(8.0)

    tensors = {
        "attn_norm": (64,),
        "attn_qkv": (3 * 64, 64),
        "attn_output": (64, 64),
        "ffn_norm": (64,),
        "ffn_up": (128, 64),
        "ffn_down": (64, 128),
    }
    return write_model("mpt", 128, tensors, add)


def test_unsupported_model_is_refused_with_its_reason(alibi_model):
    with pytest.raises(UnsupportedModelError, match=r"mpt\.gguf: ALiBi .*; use it with the full"):
        Llama(alibi_model, snapkv=SnapKVConfig(budget=64), n_ctx=128, verbose=False)


def test_completion_longer_than_the_context(llm, prompt):
    with pytest.raises(PromptError, match="exceed context window of 1024; raise n_ctx"):
        llm.create_completion(prompt * 4, max_tokens=1)


@pytest.mark.parametrize("part", ["staging", "hidden state", "mask", "compute"])
def test_out_of_memory_in_a_prefill(llm, prompt, greedy, monkeypatch, part):
    expected = greedy(llm, prompt, 6)
    monkeypatch.setenv("SNAPKV_TEST_FAIL_ALLOC", part)
    with pytest.raises(OutOfMemoryError, match="out of memory") as e:
        llm.prefill(prompt)
    assert isinstance(e.value, MemoryError)
    assert (llm.n_tokens, llm.last_prefill) == (0, None)
    monkeypatch.delenv("SNAPKV_TEST_FAIL_ALLOC")
    assert greedy(llm, prompt, 6) == expected


def test_out_of_memory_for_the_cache(make, monkeypatch):
    monkeypatch.setenv("SNAPKV_TEST_FAIL_ALLOC", "cache")
    with pytest.raises(OutOfMemoryError, match="out of memory: the compact KV cache"):
        make()
    monkeypatch.delenv("SNAPKV_TEST_FAIL_ALLOC")
    make()


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [1, 5, 15])
def test_what_progress_raises_ends_the_prefill(llm, prompt, greedy, after):
    expected = greedy(llm, prompt, 6)
    calls = []

    def progress(done, total):
        calls.append(done)
        if len(calls) == after:
            raise Stop

    with pytest.raises(Stop):
        llm.prefill(prompt, progress)
    assert len(calls) == after
    assert (llm.n_tokens, llm.last_prefill) == (0, None)
    assert greedy(llm, prompt, 6) == expected


def test_ctrl_c_while_decoding(llm, prompt, greedy, ctrl_c):
    expected = greedy(llm, prompt, 24)
    produced = []
    with pytest.raises(KeyboardInterrupt):
        for token in llm.generate(prompt, temp=0.0):
            produced.append(token)
            ctrl_c.set()
    assert produced == expected[: len(produced)] or produced[:24] == expected
    assert greedy(llm, prompt[:200], 4)  # usable
    llm.reset()
    assert greedy(llm, prompt, 24) == expected


def test_a_chat_format_that_nobody_knows(make, model_path):
    llm = make(n_ctx=256, chat_format="nosuch")
    with pytest.raises(
        ConfigError, match=r"chat_format=nosuch: is not a chat format; give .* chatml"
    ):
        llm.create_chat_completion([{"role": "user", "content": "Hello"}])


@pytest.mark.parametrize("given", [{"n_ctx": -1}, {"n_threads": -3}, {"n_threads_batch": 513}])
def test_numbers_that_llama_cpp_would_take_for_others(model_path, given):
    with pytest.raises(ConfigError, match="is out of range; give a number from 0 to"):
        Llama(model_path, **given)


def test_a_model_that_is_not_known_has_the_logs_reason(model_path, tmp_path, capfd):
    path = tmp_path / "unknown.gguf"
    data = Path(model_path).read_bytes()
    path.write_bytes(data.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0lluma", 1))
    with pytest.raises(
        ModelFileError, match="cannot be loaded: unknown model architecture: 'lluma'"
    ):
        Llama(str(path), verbose=False)
    assert capfd.readouterr().err == ""
