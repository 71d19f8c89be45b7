"""Recall while answering: rows of the vault come back between two tokens, and the cache stays as large."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from refused import refused

from snapkv_local import Llama, SnapKVConfig
from snapkv_local.errors import ConfigError
from snapkv_local.llama import session

OFF = SnapKVConfig(budget=96, window_size=16, decode_cells=64, vault="ram", recall_every=8)
CONFIG = replace(OFF, recall=True)

Make = Callable[..., Llama]


def test_rows_come_back_every_so_many_tokens(make: Make, prompt: list[int]) -> None:
    off, llm = make(OFF), make(CONFIG)
    off.prefill(prompt)
    llm.prefill(prompt)
    before = llm.kept_positions()
    np.testing.assert_array_equal(before, off.kept_positions())
    answer = prompt[40:60]
    found, expected = llm.logits_for(answer), off.logits_for(answer)
    # of the first ones, which a batch of eight has; with recall in a batch of its own
    np.testing.assert_allclose(found[:8], expected[:8], atol=2e-2, rtol=0)
    assert np.abs(found[8:] - expected[8:]).max() > 0
    recalls = llm.recalls()
    assert [recall.pos for recall in recalls] == [len(prompt) + 7, len(prompt) + 15]
    kept = llm.kept_positions()
    assert kept.shape == before.shape and (np.diff(kept) > 0).all()
    gone = [
        set(a) - set(b) for a, b in zip(before.reshape(-1, 80), kept.reshape(-1, 80), strict=True)
    ]
    assert 0 < sum(map(len, gone)) <= sum(recall.n_rows for recall in recalls)
    assert all(recall.n_bytes > 0 and recall.seconds_rank > 0 for recall in recalls)
    assert off.recalls() == []

    off.prefill(prompt)
    llm.prefill(prompt)
    assert llm.recalls() == []
    np.testing.assert_array_equal(llm.kept_positions(), off.kept_positions())


def test_rows_come_while_the_answer_goes_on(make: Make, prompt: list[int]) -> None:
    """Those that the answer would have waited for, some tokens later, whatever the threads did."""
    at_once, later = make(CONFIG), make(replace(CONFIG, recall_delay=5))
    kept = {}
    for llm, n in ((at_once, 8), (later, 13)):
        llm.prefill(prompt)
        for token in prompt[40 : 40 + n - 1]:
            llm.logits_for([token])
        assert llm.recalls() == []
        llm.logits_for([prompt[40 + n - 1]])
        assert [recall.pos for recall in llm.recalls()] == [len(prompt) + n - 1]
        kept[n] = llm.kept_positions()
    np.testing.assert_array_equal(kept[8], kept[13])


def test_the_index_finds_what_all_rows_would_have_given(make: Make, prompt: list[int]) -> None:
    found = {}
    for rows in (0, 1):  # four times those that are kept, at least
        llm = make(replace(CONFIG, budget=48, recall_rows=rows))
        llm.prefill(prompt)
        before = llm.kept_positions()
        llm.logits_for(prompt[40:48])
        (recall,) = llm.recalls()
        assert (recall.bytes_index > 0) == (rows > 0)
        found[rows] = (before.reshape(-1, 32), llm.kept_positions().reshape(-1, 32))
    n_new = n_found = 0
    for before, best, ours in zip(*found[0], found[1][1], strict=True):
        n_new += len(set(best) - set(before))
        n_found += len((set(best) - set(before)) & set(ours))
    assert n_new > 0 and n_found >= 0.6 * n_new


def test_a_session_saved_after_a_recall_goes_on(make: Make, prompt: list[int], tmp_path) -> None:
    llm = make(CONFIG)
    llm.prefill(prompt)
    llm.logits_for(prompt[40:52])
    assert llm.recalls()
    llm.save_session(tmp_path / "session")
    other = make(CONFIG)
    other.load_session(tmp_path / "session")
    np.testing.assert_array_equal(other.kept_positions(), llm.kept_positions())
    np.testing.assert_array_equal(other.logits_for([7]), llm.logits_for([7]))


@pytest.mark.parametrize(
    ("arguments", "subject"),
    [({"draft_model": object()}, "draft_model")],
)
def test_what_a_recall_does_not_go_with(
    make: Make, arguments: dict[str, object], subject: str
) -> None:
    with refused(ConfigError, subject):
        make(CONFIG, **arguments)


def answer(llm: Llama, prompt: list[int], n: int = 20) -> list[int]:
    found = [token for token, _ in zip(llm.generate(prompt, temp=0.0), range(n), strict=False)]
    llm.end_answer()
    return found


def held(llm: Llama) -> tuple[bytes, bytes, list[int]]:
    """What a conversation has in the cache, which rows, and where it has recalled some."""
    state = session.take(llm, with_vault=False).arrays["state"]
    return state.tobytes(), llm.kept_positions().tobytes(), [r.pos for r in llm.recalls()]


def test_conversations_recall_each_from_its_own_vault(make: Make, prompt: list[int]) -> None:
    llm = make(CONFIG, n_parallel=3)
    others = [llm, llm.conversation(), llm.conversation()]
    prompts = [prompt, prompt[100:] + prompt[:90], prompt[200:] + prompt[:150]]
    alone = []
    for each, tokens in zip(others, prompts, strict=True):
        before = [held(other) for other in others if other is not each and other.n_tokens]
        said = answer(each, tokens)
        assert len(each.recalls()) == 2
        alone.append((said, held(each)))
        assert before == [held(other) for other in others if other is not each and other.n_tokens]

    for each in others:
        each.reset()
    start = threading.Barrier(len(others))

    def at_once(each: Llama, tokens: list[int]) -> list[int]:
        each.prefill(tokens)
        start.wait(60)
        return answer(each, tokens)

    with ThreadPoolExecutor(len(others)) as pool:
        together = list(pool.map(at_once, others, prompts))
    for each, tokens, said, (said_alone, (_, kept, at)) in zip(
        others, prompts, together, alone, strict=True
    ):
        # a batch of several tokens is summed in another order, and so rounded otherwise
        assert said[:8] == said_alone[:8]
        assert [r.pos for r in each.recalls()] == at == [len(tokens) + 7, len(tokens) + 15]
        rows = each.kept_positions().reshape(-1, 80)
        same = [
            len(set(a) & set(b))
            for a, b in zip(rows, np.frombuffer(kept, np.int32).reshape(-1, 80), strict=True)
        ]
        assert sum(same) >= 0.9 * rows.size
    for each in others[1:]:
        each.close()


@pytest.mark.parametrize(("where", "delay"), [("ram", 0), ("ram", 3), ("disk", 0)])
def test_a_conversation_that_rested_recalls_as_if_it_had_not(
    make: Make, prompt: list[int], tmp_path: Path, where: str, delay: int
) -> None:
    llm = make(replace(CONFIG, recall_rows=8, recall_delay=delay), n_parallel=2)
    other = llm.conversation()
    said = answer(llm, prompt)
    snapshot = session.take(llm)
    if where == "disk":
        snapshot.write(tmp_path / "rests")
        snapshot = session.read(tmp_path / "rests")
    asked = [*prompt, *said, *prompt[30:60]]
    said_again, (_, kept, at) = answer(llm, asked), held(llm)
    assert llm.n_cached > 0 and len(llm.recalls()) == 2

    # another one has had the sequence in the meantime, and its vault and recalls with it
    answer(other, prompt[150:] + prompt[:140])
    other._attached = session.put(other, snapshot, where)
    assert other.recalls() == []
    assert answer(other, asked) == said_again
    assert [recall.pos for recall in other.recalls()] == at
    np.testing.assert_array_equal(other.kept_positions().ravel(), np.frombuffer(kept, np.int32))
    assert other.n_cached > 0
    other.close()
