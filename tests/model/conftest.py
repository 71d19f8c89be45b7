"""A small model in small contexts: `needle`, which the package has, or SmolLM2-135M-Instruct.

Where any model would do, needle computes, in a tenth of the time. SmolLM2 chats.
A test starts with a prompt of its own, whatever the shared object held before.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

import snapkv_local
from snapkv_local import Llama, SnapKVConfig
from snapkv_local.models.gguf_shape import ModelShape, read_shape
from snapkv_local.models.resolve import demo_model, needle_model

WINDOW = 16
BUDGET = 96
ROOM = 64
CONFIG = SnapKVConfig(budget=BUDGET, window_size=WINDOW, decode_cells=ROOM)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.model)


@pytest.fixture(scope="session", autouse=True)
def sigint_is_heard() -> Iterator[None]:
    """A shell starts its background jobs deaf to Ctrl-C, and the tests may be in one."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture(scope="session")
def model_path() -> str:
    return str(needle_model())


@pytest.fixture(scope="session")
def shape(model_path: str) -> ModelShape:
    """Of the model at model_path; all its layers have the same heads."""
    return read_shape(Path(model_path))


@pytest.fixture(scope="session")
def model_with_system(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """needle's path with a chat template that has a system prompt of its own, as SmolLM2's."""
    path = str(tmp_path_factory.mktemp("system") / "model.gguf")
    reader, name = gguf.GGUFReader(model_path), gguf.Keys.Tokenizer.CHAT_TEMPLATE
    template = (
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\n"
        "You answer questions about a text.<|im_end|>\\n' }}{% endif %}"
    )
    template += reader.get_field(name).contents()
    metadata = {name: MetadataDetails(gguf.GGUFValueType.STRING, template)}
    copy_with_new_metadata(reader, gguf.GGUFWriter(path, "llama"), metadata, [])
    return path


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The path of SmolLM2-135M-Instruct."""
    return str(demo_model())


@pytest.fixture(scope="session")
def document() -> str:
    folder = Path(snapkv_local.__file__).parent
    return (folder / "demo" / "station.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def make(model_path: str) -> Iterator[Callable[..., Llama]]:
    """Makes a Llama with small batches.

    One thread computes: two would wait for each other on a busy machine.
    """
    made: list[Llama] = []

    def make(snapkv: SnapKVConfig | None = CONFIG, path: str = model_path, **kwargs: Any) -> Llama:
        settings = {"n_ctx": 1024, "n_batch": 256, "n_ubatch": 128, "seed": 1, "verbose": False}
        threads = {"n_threads": 1, "n_threads_batch": 1}
        llm = Llama(path, snapkv=snapkv, **{**settings, **threads, **kwargs})
        made.append(llm)
        return llm

    yield make
    for llm in made:
        llm.close()


@pytest.fixture(scope="session")
def llm(make: Callable[..., Llama]) -> Llama:
    """With a compact cache, and scores kept."""
    return make(keep_scores=True)


@pytest.fixture(scope="session")
def plain(make: Callable[..., Llama]) -> Llama:
    """With the full cache; flash attention as with snapkv."""
    return make(None, flash_attn=True)


@pytest.fixture(scope="session")
def prompt(llm: Llama, document: str) -> list[int]:
    """300 tokens: three ubatches, the last one not full."""
    return llm.tokenize(document.encode())[:300]


@pytest.fixture(scope="session")
def greedy() -> Callable[..., list[int]]:
    """The n most likely tokens after a prompt; without one, after what the Llama holds."""

    def greedy(llm: Llama, prompt: list[int], n: int) -> list[int]:
        if prompt:
            llm.reset()  # llama_cpp would go on from a prefix that it holds, compressed or not
        tokens = llm.generate(prompt, temp=0.0)
        found = [token for token, _ in zip(tokens, range(n), strict=False)]
        tokens.close()
        return found

    return greedy


@pytest.fixture
def tap() -> Iterator[Callable[[Llama, list[int]], list[dict[str, Any]]]]:
    """Prefills, and returns what the scorer saw: for each cached layer q, k, scale and softcap.

    q is [n_head, window, head_dim], k [n_head_kv, n_prompt, head_dim].
    """

    def prefill(llm: Llama, tokens: list[int]) -> list[dict[str, Any]]:
        seen: list[dict[str, Any]] = []

        def note(d: Any) -> None:
            q = np.ctypeslib.as_array(d.q, (d.n_head, d.n_queries, d.head_dim)).copy()
            k = np.ctypeslib.as_array(d.k, (d.n_head_kv, d.n_prompt, d.head_dim)).copy()
            seen.append({"ic": d.ic, "q": q, "k": k, "scale": d.scale, "softcap": d.softcap})

        llm._ctx.tap = note
        try:
            llm.prefill(tokens)
        finally:
            llm._ctx.tap = None
        return seen

    return prefill


@pytest.fixture
def ctrl_c() -> Iterator[threading.Event]:
    """Once this event is set, another thread sends SIGINT, as a terminal would."""
    event = threading.Event()

    def send() -> None:
        if event.wait(60):
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=send)
    thread.start()
    yield event
    if not event.is_set():
        # lets the thread end: the signal goes to nobody
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        event.set()
        thread.join()
        signal.signal(signal.SIGINT, previous)
    thread.join()


@pytest.fixture(scope="session")
def python(model_path: str) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs code in a process of its own; MODEL is the model's path."""

    def python(code: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, "MODEL": model_path, **environment}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    return python


@pytest.fixture
def write_model(tmp_path: Path) -> Callable[..., str]:
    """Writes a GGUF of one layer with two heads of 32 elements, all weights equal; its path.

    tensors are the layer's shapes by name, add writes the metadata that the architecture has beside.
    """

    def write_model(
        arch: str,
        n_ff: int,
        tensors: dict[str, tuple[int, ...]],
        add: Callable[[gguf.GGUFWriter], None],
    ) -> str:
        path = str(tmp_path / f"{arch}.gguf")
        writer = gguf.GGUFWriter(path, arch)
        writer.add_block_count(1)
        writer.add_context_length(256)
        writer.add_embedding_length(64)
        writer.add_feed_forward_length(n_ff)
        writer.add_head_count(2)
        writer.add_vocab_size(32)
        writer.add_tokenizer_model("no_vocab")
        add(writer)
        shapes = {"token_embd": (32, 64), "output_norm": (64,)}
        shapes |= {f"blk.0.{name}": shape for name, shape in tensors.items()}
        for name, shape in shapes.items():
            writer.add_tensor(f"{name}.weight", np.full(shape, 0.01, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write_model
