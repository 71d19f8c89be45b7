"""LoRA adapters: K and V of a text are the adapter's, too."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGUFValueType

from snapkv_local import Llama, SnapKVConfig
from snapkv_local.errors import DocumentError, ModelFileError
from snapkv_local.models.gguf_shape import ModelShape, read_shape
from snapkv_local.prompt import template
from snapkv_local.prompt.build import SEPARATOR

RANK = 4
CONFIG = SnapKVConfig(budget=96, window_size=16, decode_cells=64, vault="ram")
QUESTION = "Who is the cook of the station, and on which day does the boat come that brings stores?"


def write_adapter(path: Path, shape: ModelShape, seed: int, invoked_by: Sequence[int] = ()) -> str:
    """For K and V of all layers, with random numbers; tokens of invoked_by have it act."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, shape.arch)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 2.0 * RANK)
    if invoked_by:
        name = "adapter.alora.invocation_tokens"
        writer.add_key_value(name, invoked_by, GGUFValueType.ARRAY, GGUFValueType.UINT32)
    for il in range(shape.n_layer):
        n_kv = shape.n_head_kv[il] * shape.head_k
        for name in ("attn_k", "attn_v"):
            for half, size in (("a", (RANK, shape.n_embd)), ("b", (n_kv, RANK))):
                numbers = rng.normal(0, 0.1, size).astype(np.float32)
                writer.add_tensor(f"blk.{il}.{name}.weight.lora_{half}", numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


@pytest.fixture(scope="module")
def adapters(shape: ModelShape, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("adapters")
    first, second = (write_adapter(folder / f"{i}.gguf", shape, seed=i) for i in (1, 2))
    return first, second


@pytest.fixture(scope="module")
def adapted(make: Callable[..., Llama], adapters: tuple[str, str]) -> Llama:
    return make(CONFIG, lora_path=adapters[0])


@pytest.fixture(scope="module")
def text(document: str) -> str:
    return document[:1200].strip()


def test_a_prefill_computes_with_the_adapter(
    make: Callable[..., Llama], adapters: tuple[str, str], llm: Llama, prompt: list[int]
) -> None:
    """All rows, in groups of layers, give what the full cache with the adapter gives."""
    full = make(None, flash_attn=True, lora_path=adapters[0])
    full.eval(prompt)
    expected = full.logits_for(prompt[:8])
    roomy = make(SnapKVConfig(budget=299, decode_cells=64, vault="ram"), lora_path=adapters[0])
    roomy.prefill(prompt)
    roomy.select_rows(None)
    np.testing.assert_array_equal(roomy.logits_for(prompt[:8]), expected)
    llm.prefill(prompt)
    assert np.abs(llm.logits_for(prompt[:8]) - expected).max() > 1


def test_a_document_belongs_to_its_adapter(
    make: Callable[..., Llama],
    adapted: Llama,
    adapters: tuple[str, str],
    text: str,
    tmp_path: Path,
) -> None:
    path, plain = tmp_path / "adapted.snapkv", tmp_path / "plain.snapkv"
    document = adapted.ingest(text, path)
    tokens = template.chat_tokens(adapted, text + SEPARATOR + QUESTION)
    adapted.clear_vault()
    adapted.prefill(tokens[: len(document.tokens)])
    adapted.prefill(tokens)
    expected = adapted.logits_for(tokens[:8])

    same = make(CONFIG, lora_path=adapters[0])
    same.open_document(path)
    assert same.prefill(tokens).n_cached == len(tokens) - 64  # those are computed anew
    np.testing.assert_array_equal(same.logits_for(tokens[:8]), expected)

    without = make(CONFIG)
    without.ingest(text, plain)
    others = [
        (without, path),
        (adapted, plain),
        (make(CONFIG, lora_path=adapters[0], lora_scale=0.5), path),
        (make(CONFIG, lora_path=adapters[1]), path),
    ]
    for other, file in others:
        with pytest.raises(DocumentError) as caught:
            other.open_document(file)
        assert "the LoRA adapter is another" in caught.value.problem


def test_a_session_belongs_to_its_adapter(
    make: Callable[..., Llama], adapted: Llama, prompt: list[int], tmp_path: Path
) -> None:
    adapted.prefill(prompt)
    adapted.save_session(tmp_path / "talk.snapkv")
    with pytest.raises(DocumentError) as caught:
        make(CONFIG).load_session(tmp_path / "talk.snapkv")
    assert "the LoRA adapter is another" in caught.value.problem


def test_the_command_line_has_it_too(
    adapters: tuple[str, str], model_path: str, tmp_path: Path
) -> None:
    """Of a document that was read with an adapter, that adapter alone can be asked."""
    file, book = tmp_path / "book.txt", tmp_path / "book.snapkv"
    file.write_text("The cook is Ada. The boat comes on Friday. " * 20)
    command = [sys.executable, "-m", "snapkv_local"]
    ask = ["ask", book, "Who cooks?", "--max-tokens", "4", "--json", "--threads", "1"]

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *arguments], capture_output=True, text=True)

    made = run("ingest", model_path, "--file", file, "--out", book, "--lora", adapters[0])
    assert made.returncode == 0, made.stderr
    same = run(*ask, "--lora-scaled", f"{adapters[0]}:1")
    assert same.returncode == 0, same.stderr
    assert json.loads(same.stdout)["text"]
    for other in ([], ["--lora", adapters[1]], ["--lora-scaled", f"{adapters[0]}:0.5"]):
        refused = run(*ask, *other)
        assert refused.returncode == 1
        assert "the LoRA adapter is another" in refused.stderr


def test_what_is_no_adapter_of_the_model_is_refused(
    make: Callable[..., Llama],
    adapters: tuple[str, str],
    shape: ModelShape,
    smollm2: str,
    tmp_path: Path,
) -> None:
    whole = Path(adapters[0]).read_bytes()
    cut, text = tmp_path / "cut.gguf", tmp_path / "text.gguf"
    cut.write_bytes(whole[: len(whole) // 2])
    text.write_text("no model")
    of_another = write_adapter(tmp_path / "another.gguf", read_shape(Path(smollm2)), seed=1)
    for path in (cut, text, of_another, smollm2, tmp_path / "missing.gguf"):
        for config in (CONFIG, None):
            with pytest.raises(ModelFileError, match="is not a LoRA adapter of this model"):
                make(config, lora_path=str(path))
    invoked = write_adapter(tmp_path / "invoked.gguf", shape, seed=1, invoked_by=[5, 6])
    with pytest.raises(ModelFileError, match="acts behind certain tokens only"):
        make(CONFIG, lora_path=invoked)


def test_a_model_with_an_adapter_goes_in_any_order(
    adapters: tuple[str, str], model_path: str
) -> None:
    """Where nobody closes it, Python takes its parts down as it finds them."""
    program = (
        "import gc, sys; from snapkv_local import Llama, SnapKVConfig\n"
        "for _ in range(2):\n"
        "    llm = Llama(sys.argv[1], n_ctx=256, snapkv=SnapKVConfig(budget=64, window_size=16),\n"
        "        lora_path=sys.argv[2], n_threads=1, verbose=False)\n"
        "    llm._model.close(); del llm; gc.collect()\n"
    )
    command = [sys.executable, "-c", program, model_path, adapters[0]]
    subprocess.run(command, check=True)
