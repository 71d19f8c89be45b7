"""LoRA adapters: K and V of a text are the adapter's, too."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from snapkv_local import Llama, SnapKVConfig
from snapkv_local.errors import DocumentError
from snapkv_local.models.gguf_shape import ModelShape
from snapkv_local.prompt import template
from snapkv_local.prompt.build import SEPARATOR

RANK = 4
CONFIG = SnapKVConfig(budget=96, window_size=16, decode_cells=64, vault="ram")
QUESTION = "Who is the cook of the station, and on which day does the boat come that brings stores?"


def write_adapter(path: Path, shape: ModelShape, seed: int) -> str:
    """For K and V of all layers, with random numbers."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, shape.arch)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 2.0 * RANK)
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
