"""Documents and conversations in files."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from snapkv_local import Llama, SnapKVConfig
from snapkv_local.errors import ConfigError, DocumentError, NoRoomError, PromptError
from snapkv_local.prompt import template, vocabulary
from snapkv_local.prompt.build import SEPARATOR

CONFIG = SnapKVConfig(budget=96, window_size=16, decode_cells=64, vault="ram")
QUESTION = (
    "Who is the cook of the station, who was the cook before, and what else does the text say about "
    "the kitchen, the stores, the boat that brings them, the day on which it comes and the weather "
    "that it has to wait for? Answer in one sentence, with the names as they stand in the text."
)


@pytest.fixture(scope="module")
def text(document: str) -> str:
    return document[:1600].strip()


@pytest.fixture(scope="module")
def vaulted(make: Callable[..., Llama]) -> Llama:
    return make(CONFIG)


@pytest.fixture(scope="module")
def ingested(vaulted: Llama, text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("documents") / "station.snapkv"
    document = vaulted.ingest(text, path, title="Station")
    assert document.n_bytes == path.stat().st_size
    return path


def asked(llm: Llama, text: str, question: str = QUESTION) -> list[int]:
    return template.chat_tokens(llm, text + SEPARATOR + question)


def test_a_document_is_what_was_evaluated(
    make: Callable[..., Llama], vaulted: Llama, ingested: Path, text: str
) -> None:
    vaulted.clear_vault()
    llm = make(CONFIG)
    document = llm.open_document(ingested)
    assert (document.title, document.text, document.kv_type) == ("Station", text, "f16")
    tokens = asked(llm, text)
    n = len(document.tokens)
    assert tokens[:n] == document.tokens.tolist()
    assert b"".join(vocabulary.pieces(llm, tokens[:n])).decode() == document.prefix

    # the same vault, filled by a prefill here
    vaulted.prefill(tokens[:n])
    vaulted.prefill(tokens)
    expected, kept = vaulted.logits_for(tokens[:8]), vaulted.kept_positions()
    assert llm.prefill(tokens).n_cached == n

    np.testing.assert_array_equal(llm.kept_positions(), kept)
    np.testing.assert_array_equal(llm.logits_for(tokens[:8]), expected)


def test_each_question_begins_with_the_file(
    make: Callable[..., Llama], ingested: Path, text: str
) -> None:
    llm = make(CONFIG)
    document = llm.open_document(ingested)
    n = len(document.tokens)
    first = asked(llm, text)
    stats = [llm.prefill(first), llm.prefill(asked(llm, text, "Where is the station on the map?"))]
    # question-free text in between takes the vault for itself
    stats.append(llm.prefill(first[n - 200 : n]))
    stats.append(llm.prefill(first))
    # a short question goes back by some rows
    assert [s.n_cached > n - 64 for s in stats] == [True, True, False, True]

    answer = llm.create_chat_completion(
        [{"role": "user", "content": text + SEPARATOR + QUESTION}],
        max_tokens=4,
        temperature=0.0,
    )
    assert answer["usage"]["prompt_tokens"] == len(first)
    assert llm.last_prefill is not None and llm.last_prefill.n_cached >= n


@pytest.mark.parametrize("kv_type", [8, 2], ids=["q8_0", "q4_0"])
def test_quantized_rows_are_stored_as_they_are(
    make: Callable[..., Llama], text: str, tmp_path: Path, kv_type: int
) -> None:
    llm = make(CONFIG, type_k=kv_type, type_v=kv_type)
    path = tmp_path / "q.snapkv"
    llm.ingest(text, path)
    tokens = asked(llm, text)
    llm.prefill(tokens)
    expected = llm.logits_for(tokens[:8])
    other = make(CONFIG, type_k=kv_type, type_v=kv_type)
    other.open_document(path)
    other.prefill(tokens)
    np.testing.assert_array_equal(other.logits_for(tokens[:8]), expected)


def test_documents_of_other_settings_are_refused(
    make: Callable[..., Llama], llm: Llama, plain: Llama, vaulted: Llama, ingested: Path
) -> None:
    with pytest.raises(DocumentError, match="its cache is f16 and this one q8_0"):
        make(CONFIG, type_k=8, type_v=8).open_document(ingested)
    with pytest.raises(DocumentError, match="rope"):
        make(CONFIG, rope_freq_base=5e5).open_document(ingested)
    with pytest.raises(DocumentError, match="raise n_ctx"):
        make(CONFIG, n_ctx=256).open_document(ingested)
    with pytest.raises(DocumentError, match='vault="ram"'):
        llm.open_document(ingested)
    with pytest.raises(ConfigError, match="without snapkv"):
        plain.open_document(ingested)
    with pytest.raises(DocumentError, match='vault="ram"'):
        llm.ingest("A text.", ingested)
    with pytest.raises(PromptError, match="is empty"):
        vaulted.ingest("  ", ingested)
    with pytest.raises(PromptError, match="not longer than the window"):
        make(replace(CONFIG, window_size=64)).ingest("A text.", ingested)
    vaulted.open_document(ingested)
    vaulted.documents = ()


def test_a_vault_in_a_folder(
    make: Callable[..., Llama], vaulted: Llama, text: str, tmp_path: Path
) -> None:
    llm = make(replace(CONFIG, vault=tmp_path))
    tokens = asked(llm, text)
    for one in (llm, vaulted):
        one.clear_vault()
        one.prefill(tokens[:300])
        one.prefill(tokens)
    np.testing.assert_array_equal(llm.logits_for(tokens[:8]), vaulted.logits_for(tokens[:8]))
    assert list(tmp_path.iterdir()) == []  # it has no name
    with pytest.raises(ConfigError, match="is not a folder"):
        SnapKVConfig(vault=tmp_path / "missing")


def test_a_full_disk_for_the_vault(python: Callable[..., object], tmp_path: Path) -> None:
    code = f"""
import os, resource, signal
from snapkv_local import Llama, SnapKVConfig, errors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
config = SnapKVConfig(budget=96, window_size=16, decode_cells=64, vault={str(tmp_path)!r})
llm = Llama(os.environ["MODEL"], n_ctx=512, verbose=False, snapkv=config)
tokens = list(range(1000, 1300))
resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, -1))
try:
    llm.prefill(tokens)
except errors.SnapKVError as e:
    print(e)
resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
print(llm.prefill(tokens).n_kept)
"""
    result = python(code)
    assert "the vault gets no file" in result.stdout, result
    assert result.stdout.endswith("96\n")


@pytest.mark.parametrize("vault", ["off", "ram"])
def test_a_session_goes_on_in_another_process(
    make: Callable[..., Llama],
    greedy: Callable[..., list[int]],
    python: Callable[..., object],
    text: str,
    tmp_path: Path,
    vault: str,
) -> None:
    config = replace(CONFIG, vault=vault)
    llm = make(config)
    tokens = asked(llm, text)
    begun = greedy(llm, tokens, 8)
    path = tmp_path / "talk.snapkv"
    n_bytes = llm.save_session(path)
    assert n_bytes == path.stat().st_size
    held = [*tokens, *begun]
    expected = []
    for token in llm.generate(held, temp=0.0):  # goes on from the tokens that are evaluated
        expected.append(token)
        if len(expected) == 64:
            break

    code = f"""
import os
from snapkv_local import Llama, SnapKVConfig
config = SnapKVConfig(budget=96, window_size=16, decode_cells=64, vault={vault!r})
llm = Llama(os.environ["MODEL"], snapkv=config, n_ctx=1024, n_batch=256, n_ubatch=128,
            n_threads=1, seed=1, verbose=False)
llm.load_session({str(path)!r})
found = []
for token in llm.generate({held!r}, temp=0.0):
    found.append(token)
    if len(found) == 64:
        break
print(found, len(llm.evictions))
"""
    result = python(code)
    assert result.stdout.startswith(str(expected)), result
    assert len(llm.evictions) > 0  # the cells ran out on the way


def test_a_session_begins_with_the_logits_that_it_ended_with(
    make: Callable[..., Llama], text: str, tmp_path: Path
) -> None:
    llm = make(CONFIG)
    tokens = asked(llm, text)
    llm.prefill(tokens)
    path = tmp_path / "talk.snapkv"
    llm.save_session(path)
    expected = llm._logits(1).copy()
    other = make(CONFIG)
    other.load_session(path)
    np.testing.assert_array_equal(other._logits(1), expected)
    assert next(other.generate(tokens, temp=0.0)) == expected.argmax()
    np.testing.assert_array_equal(other.kept_positions(), llm.kept_positions())
    # and the vault is there
    assert other.prefill(tokens).n_cached == len(tokens) - 64


def test_sessions_that_do_not_fit(make: Callable[..., Llama], text: str, tmp_path: Path) -> None:
    llm = make(CONFIG)
    tokens = asked(llm, text)
    llm.prefill(tokens)
    path = tmp_path / "talk.snapkv"
    llm.save_session(path)
    small = make(SnapKVConfig(budget=20, window_size=16, decode_cells=8))
    small.prefill(tokens[:200])
    with pytest.raises(NoRoomError, match="raise budget"):
        small.load_session(path)
    small.prefill(tokens[:200])
    short = make(CONFIG, n_ctx=256)
    short.prefill(tokens[:200])
    with pytest.raises(DocumentError, match="raise n_ctx"):
        short.load_session(path)
    assert short.n_tokens == 200
    with pytest.raises(DocumentError, match="holds a session"):
        llm.open_document(path)


def test_files_that_are_cut_while_they_are_mapped(
    make: Callable[..., Llama], text: str, ingested: Path, tmp_path: Path
) -> None:
    path, saved = tmp_path / "cut.snapkv", tmp_path / "talk.snapkv"
    shutil.copy(ingested, path)
    llm = make(CONFIG)
    tokens = asked(llm, text)
    document = llm.open_document(path)
    about = [*document.tokens.tolist(), *tokens[-40:]]
    expected = llm.prefill(about)
    assert expected.n_cached > 0
    llm.save_session(saved)

    os.truncate(path, 8192)
    for use in (llm.layer_views, lambda: llm.select_rows(None), lambda: llm.save_session(saved)):
        with pytest.raises(DocumentError, match="to 8,192 bytes after it was opened"):
            use()
    with pytest.raises(DocumentError, match="was cut in place"):
        llm.prefill(about)
    assert llm.prefill(tokens[20:]).n_cached == 0  # of something else

    shutil.copy(ingested, tmp_path / "new")
    (tmp_path / "new").replace(path)
    llm.open_document(path)
    assert llm.prefill(about).n_cached == expected.n_cached

    llm.load_session(saved)
    os.truncate(saved, 8192)
    with pytest.raises(DocumentError, match="was cut in place"):
        llm.prefill([*about, *tokens[:20]])
    assert llm.prefill(about).n_cached == expected.n_cached


def test_a_file_that_is_cut_within_a_prefill(
    make: Callable[..., Llama], text: str, ingested: Path, tmp_path: Path
) -> None:
    path = tmp_path / "cut.snapkv"
    shutil.copy(ingested, path)
    llm = make(CONFIG)
    about = [*llm.open_document(path).tokens.tolist(), *asked(llm, text)[-40:]]
    with pytest.raises(DocumentError, match="was written to in place"):
        llm.prefill(about, lambda _done, _total: os.utime(path))
    assert llm.prefill(about[20:]).n_kept == 96
