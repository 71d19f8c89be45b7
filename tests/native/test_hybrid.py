"""Llama with models that have recurrent layers: DeltaNet, Mamba 1 and 2, short convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from at_once import at_once
from refused import refused
from tiny_llama import Make, greedy, logits, maker, tokens

from snapkv_local import ModelDraft, SnapKVConfig
from snapkv_local.errors import ConfigError, OutOfMemoryError
from snapkv_local.llama import saved

from llama_cpp.llama_speculative import LlamaDraftModel, LlamaPromptLookupDecoding  # isort: skip

pytestmark = pytest.mark.native

CONFIG = SnapKVConfig(budget=64, window_size=8, decode_cells=64)
WHOLE = SnapKVConfig(budget=400, window_size=8, decode_cells=64)
VAULT = SnapKVConfig(budget=64, window_size=8, decode_cells=64, vault="ram")


class Guesses(LlamaDraftModel):
    """Guesses what a text says next, and a wrong token somewhere.

    Args:
        text: prompt and answer.
        n: tokens of a guess.
        wrong_at: index in each guess; None for nowhere.
    """

    def __init__(self, text: list[int], n: int, wrong_at: int | None) -> None:
        self.text, self.n, self.wrong_at = text, n, wrong_at

    def __call__(self, input_ids: npt.NDArray[np.intc], /, **_: Any) -> npt.NDArray[np.intc]:
        """What follows, [up to n]."""
        found = np.array(self.text[len(input_ids) : len(input_ids) + self.n], np.intc)
        if self.wrong_at is not None and self.wrong_at < len(found):
            found[self.wrong_at] = (found[self.wrong_at] + 1) % 100
        return found


@pytest.fixture(params=["qwen35-dense", "jamba-dense", "granitehybrid-dense", "lfm2-dense"])
def make(request: pytest.FixtureRequest, arch_models: Path) -> Iterator[Make]:
    with maker(arch_models / f"{request.param}.gguf", CONFIG) as make:
        yield make


def test_the_budget_of_a_whole_prompt_is_the_full_cache(make: Make) -> None:
    prompt = tokens(200)
    assert greedy(make(WHOLE), prompt, 20) == greedy(make(None), prompt, 20)


def test_a_prefill_has_the_logits_of_the_full_cache(make: Make) -> None:
    full, ours = make(None), make()
    full.eval(tokens(200))
    stats = ours.prefill(tokens(200))
    assert stats.n_kept == 64
    assert np.array_equal(logits(ours), logits(full))


def test_the_next_turn_goes_on_from_the_state(make: Make) -> None:
    llm, other = make(), make()
    prompt, more = tokens(200), tokens(20, seed=2)
    answer = greedy(llm, prompt, 10)
    evaluated = len(prompt) + len(answer) - 1
    found = greedy(llm, [*prompt, *answer, *more], 10)
    assert llm.n_cached == evaluated

    other.prefill(prompt)
    other.eval(answer[:-1])
    other.eval([answer[-1], *more])
    assert found[0] == int(np.argmax(logits(other)))
    assert found == greedy(other, [*prompt, *answer, *more], 10)


@pytest.mark.parametrize("n_same", [0, 20, 199])
def test_a_prompt_that_goes_back_is_evaluated_anew(make: Make, n_same: int) -> None:
    llm, prompt = make(), tokens(200)
    greedy(llm, prompt, 5)
    other = [*prompt[:n_same], *tokens(200 - n_same, seed=3)]
    found = greedy(llm, other, 10)
    assert llm.last_prefill is not None
    assert llm.last_prefill.n_prompt == 200
    assert llm.n_cached == 0
    assert found == greedy(make(), other, 10)


def test_a_prompt_that_is_given_again_is_answered_from_its_end(make: Make) -> None:
    llm, other = make(), make()
    prompt = tokens(200)
    answer = greedy(llm, prompt, 20)
    assert greedy(llm, prompt, 20) == answer
    assert llm.n_cached == 200  # nothing is evaluated
    greedy(other, prompt, 1)
    greedy(llm, prompt, 1)
    assert np.array_equal(logits(llm), logits(other))


@pytest.mark.parametrize("n_prompt", [40, 200])
def test_a_changed_last_message_goes_on_from_the_answer_before(make: Make, n_prompt: int) -> None:
    llm, other = make(), make()
    prompt, asked, changed = tokens(n_prompt), tokens(20, seed=2), tokens(25, seed=3)
    answer = greedy(llm, prompt, 10)
    first = greedy(llm, [*prompt, *answer, *asked], 10)
    evaluated = n_prompt + len(answer) - 1

    found = greedy(llm, [*prompt, *answer, *changed], 10)
    assert llm.n_cached == evaluated
    assert greedy(other, prompt, 10) == answer
    assert found == greedy(other, [*prompt, *answer, *changed], 10)
    assert np.array_equal(logits(llm), logits(other))
    # and once more the first one
    assert greedy(llm, [*prompt, *answer, *asked], 10) == first
    assert llm.n_cached == evaluated


def test_without_a_reset_nothing_goes_back(make: Make) -> None:
    llm = make()
    answer = greedy(llm, tokens(200), 10)
    for _ in llm.generate(tokens(20), temp=0.0, reset=False):
        break
    assert llm.n_tokens == 200 + len(answer) - 1 + 20


@pytest.mark.parametrize(
    ("n_document", "n_question", "n_cached"), [(256, 64, (256, 256)), (246, 10, (128, 192))]
)
def test_a_question_to_the_vault_is_as_a_prefill_anew(
    make: Make, n_document: int, n_question: int, n_cached: tuple[int, int]
) -> None:
    """At least 64 tokens are computed; before these, states are kept where chunks end."""
    llm, anew = make(VAULT), make()
    document = tokens(n_document)
    n_bytes = llm.prefill(document).bytes_state
    for seed, expected in enumerate(n_cached, 5):
        prompt = [*document, *tokens(n_question, seed)]
        stats = llm.prefill(prompt)
        assert stats.n_cached == expected
        assert stats.bytes_state >= n_bytes > anew.prefill(prompt).bytes_state > 0
        assert np.array_equal(logits(llm), logits(anew))
        assert np.array_equal(llm.kept_positions(), anew.kept_positions())
        assert greedy(llm, prompt, 10) == greedy(anew, prompt, 10)


def test_each_turn_of_a_vault_chooses_its_rows(make: Make) -> None:
    llm, anew = make(VAULT), make()
    prompt, more = tokens(256), tokens(57, seed=2)
    answer = greedy(llm, prompt, 8)
    turn = [*prompt, *answer, *more]
    found = greedy(llm, turn, 5)
    assert llm.last_prefill is not None
    assert llm.last_prefill.n_cached == len(prompt)
    anew.prefill(turn)
    assert found == greedy(anew, turn, 5)


def test_rows_chosen_anew_have_the_prompts_state(make: Make) -> None:
    llm = make(VAULT)
    llm.prefill(tokens(200))
    kept = llm.kept_positions()
    expected = llm.logits_for(tokens(5, seed=2))
    llm.select_rows(list(kept))
    assert np.array_equal(llm.logits_for(tokens(5, seed=2)), expected)


def test_what_eval_asks_of_an_engine(make: Make) -> None:
    """Cells for the whole prompt and a vault: all rows are the full cache, and other rows are others."""
    full = make(None)
    llm = make(SnapKVConfig(budget=400, window_size=8, decode_cells=64, vault="ram"))
    prompt, answer = tokens(200), tokens(8, seed=2)
    full.eval(prompt)
    expected = full.logits_for(answer)
    llm.prefill(prompt)
    views = llm.layer_views()
    assert len(views) == len(llm.cached_layers())
    few = [np.arange(16, dtype=np.int32)[None].repeat(view.k.shape[0], 0) for view in views]
    llm.select_rows(few)
    assert not np.array_equal(llm.logits_for(answer), expected)
    llm.select_rows(None)
    assert np.array_equal(llm.logits_for(answer), expected)


def test_documents(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = tokens(256)
    prompt = [*document, *tokens(64, seed=2)]
    # these models have no vocabulary to spell a text with
    monkeypatch.setattr(saved, "_opening", lambda _llm, _text: ("", document))
    path = tmp_path / "d.snapkv"
    make(VAULT).ingest("a text", path)

    llm, anew = make(VAULT), make()
    found = llm.open_document(path)
    positions = [state.pos for state in found.segment.states]
    assert positions[-1] == 256
    assert positions == sorted(set(positions))
    stats = llm.prefill(prompt)
    assert stats.n_cached == 256
    # the file's states are no memory of ours
    assert stats.bytes_state < len(positions) * len(found.segment.states[0].data)
    anew.prefill(prompt)
    assert np.array_equal(logits(llm), logits(anew))
    assert greedy(llm, prompt, 10) == greedy(anew, prompt, 10)


def test_a_turn_longer_than_the_cells_evicts_from_the_state(make: Make) -> None:
    llm = make()
    answer = greedy(llm, tokens(192), 4)
    turn = [*tokens(192), *answer, *tokens(100, seed=4)]
    greedy(llm, turn, 1)
    assert llm.last_prefill is not None
    assert llm.last_prefill.n_kept == 64
    assert llm.last_prefill.n_prompt == len(turn)


def test_an_answer_longer_than_the_cells_goes_on(make: Make) -> None:
    llm, other = make(), make()
    answer = greedy(llm, tokens(200), 150)
    assert len(answer) == 150
    first, second = llm.evictions
    assert first.n_kept == second.n_kept == 64
    # as if its last tokens, which vote, had been a turn
    said = [*tokens(200), *answer]
    n = first.n_prompt
    other.prefill(said[:200])
    for token in said[200 : n - 16]:
        other.eval([token])
    assert other._ctx.extend(n - 16, np.array(said[n - 16 : n], np.int32)) is not None
    other._note(n - 16, said[n - 16 : n], 1)
    for token in said[n : second.n_prompt]:
        assert int(np.argmax(logits(other))) == token
        other.eval([token])


def test_an_answer_with_few_cells_has_all_evaluated_anew(make: Make) -> None:
    """No state was kept so many tokens before, as a window has."""
    few = SnapKVConfig(budget=64, window_size=40, decode_cells=32)
    llm = make(few)
    answer = greedy(llm, tokens(200), 80)
    said = [*tokens(200), *answer]
    n = llm.evictions[-1].n_prompt
    assert greedy(make(few), said[:n], 1) == said[n : n + 1]


def test_a_short_turn_beyond_the_cells_goes_on_from_where_the_answer_began(make: Make) -> None:
    llm, other = make(), make()
    prompt, more = tokens(200), tokens(6, seed=2)
    answer = greedy(llm, prompt, 62)
    turn = [*prompt, *answer, *more]
    found = greedy(llm, turn, 5)
    assert llm.last_prefill is not None
    assert (llm.last_prefill.n_prompt, llm.last_prefill.n_kept) == (len(turn), 64)
    assert llm.n_cached >= 200

    start = llm.n_cached
    other.prefill(prompt)
    for token in answer[: start - 200]:
        other.eval([token])
    assert other._ctx.extend(start, np.array(turn[start:], np.int32)) is not None
    assert int(np.argmax(logits(other))) == found[0]


def test_sessions(make: Make, tmp_path: Path) -> None:
    llm, other = make(), make()
    answer = greedy(llm, tokens(200), 5)
    llm.save_session(tmp_path / "s.snapkv")
    other.load_session(tmp_path / "s.snapkv")
    turn = [*tokens(200), *answer, *tokens(20, seed=2)]
    assert greedy(other, turn, 10) == greedy(llm, turn, 10)
    assert other.n_cached == llm.n_cached > 200


def test_the_places_to_go_back_to_are_in_a_session(make: Make, tmp_path: Path) -> None:
    llm, other = make(VAULT), make(VAULT)
    prompt = tokens(256)
    answer = greedy(llm, prompt, 5)
    expected = greedy(llm, prompt, 5)
    llm.save_session(tmp_path / "s.snapkv")
    other.load_session(tmp_path / "s.snapkv")
    assert greedy(other, prompt, 5) == expected == answer
    assert other.n_cached == 256
    # and to the vault's
    changed = [*prompt, *tokens(64, seed=3)]
    assert other.prefill(changed).n_cached == 256
    llm.prefill(changed)
    assert np.array_equal(logits(llm), logits(other))


@pytest.mark.parametrize("wrong_at", [None, 0, 2])
def test_drafts_change_no_token(make: Make, wrong_at: int | None) -> None:
    plain = make()
    expected = greedy(plain, tokens(300), 40)
    llm = make(draft_model=Guesses([*tokens(300), *expected], 4, wrong_at))
    assert greedy(llm, tokens(300), 40) == expected
    if wrong_at is None:
        assert (llm.n_looks, llm.n_again, llm.n_accepted) == (8, 0, llm.n_drafted)
    else:
        assert llm.n_again > 0
        assert llm.n_accepted < llm.n_drafted
    llm.end_answer()
    assert llm.n_tokens == plain.n_tokens
    # and as before the conversation goes on
    turn = [*tokens(300), *expected, *tokens(20, seed=2)]
    assert greedy(llm, turn, 5) == greedy(plain, turn, 5)
    assert llm.n_cached == plain.n_cached


def test_conversations_that_guess_share_steps(make: Make) -> None:
    prompts = [tokens(n, seed) for seed, n in enumerate((300, 120, 40), 1)]
    expected = [greedy(make(), prompt, 40) for prompt in prompts]
    first = make(n_parallel=3)
    both = [first, first.conversation(), first.conversation()]
    for i, llm in enumerate(both):
        llm.set_draft_model(Guesses([*prompts[i], *expected[i]], 4, (None, 0, 2)[i]))

    def answer(i: int) -> list[int]:
        found = greedy(both[i], prompts[i], 40)
        both[i].end_answer()
        return found

    assert at_once([partial(answer, i) for i in range(3)]) == expected
    assert [llm.n_again > 0 for llm in both[1:]] == [True, True]
    assert [llm.n_tokens for llm in both] == [len(prompt) + 39 for prompt in prompts]


def test_drafts_while_rows_are_evicted(make: Make) -> None:
    plain = make()
    expected = greedy(plain, tokens(300), 100)
    llm = make(draft_model=Guesses([*tokens(300), *expected], 5, 2))
    assert greedy(llm, tokens(300), 100) == expected
    assert [stats.n_prompt for stats in llm.evictions] == [
        stats.n_prompt for stats in plain.evictions
    ]


def test_a_draft_model_goes_back_too(make: Make) -> None:
    expected = greedy(make(), tokens(300), 60)
    llm = make(draft_model=ModelDraft(make(), n_max=3))
    assert greedy(llm, tokens(300), 60) == expected
    # the same model guesses what it would have said itself, but for ties
    assert llm.n_accepted > 0.8 * llm.n_drafted > 0


@pytest.mark.parametrize("arch", ["nemotron_h-dense", "llama-dense"])
def test_a_draft_model_that_is_wrong(make: Make, arch_models: Path, arch: str) -> None:
    expected = greedy(make(), tokens(300), 40)
    with maker(arch_models / f"{arch}.gguf", CONFIG) as make_other:
        llm = make(draft_model=ModelDraft(make_other(), n_max=3))
        assert greedy(llm, tokens(300), 40) == expected
        assert llm.n_drafted > 0
        # random weights may end in one token over and over, which another model then guesses
        assert (llm.n_again > 0) == (llm.n_accepted < llm.n_drafted)
        llm.close()


def test_a_look_that_fails_leaves_what_was_said(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = greedy(make(), tokens(300), 40)
    llm = make(draft_model=Guesses([*tokens(300), *expected], 4, 1))
    found, answer = [], llm.generate(tokens(300), temp=0.0)
    while llm.n_again == 0:  # the next batch goes back, too
        found.append(next(answer))
    monkeypatch.setenv("SNAPKV_TEST_FAIL_ALLOC", "step")
    with refused(OutOfMemoryError, "a batch of tokens"):
        for token in answer:
            found.append(token)
    monkeypatch.delenv("SNAPKV_TEST_FAIL_ALLOC")
    assert found == expected[: len(found)]
    assert 300 <= llm.n_tokens < 300 + len(found)
    assert greedy(llm, [*tokens(300), *found], 10) == expected[len(found) : len(found) + 10]
    assert llm.n_cached >= 300


def test_states_before_drafts_need_memory(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = make()
    monkeypatch.setenv("SNAPKV_TEST_FAIL_ALLOC", "looks")
    with refused(OutOfMemoryError, "drafts"):
        llm.set_draft_model(LlamaPromptLookupDecoding())
    assert len(greedy(llm, tokens(300), 5)) == 5


def test_a_full_cache_keeps_no_states_for_drafts(make: Make) -> None:
    with pytest.raises(ConfigError, match="without a compact cache"):
        make(None, draft_model=LlamaPromptLookupDecoding())
    with refused(ConfigError, "the draft model"):
        ModelDraft(make(None))


def test_an_answer_that_ends_within_a_look_leaves_what_it_said(make: Make) -> None:
    plain = make()
    expected = greedy(plain, tokens(300), 12)
    llm = make(draft_model=Guesses([*tokens(300), *expected, *tokens(20)], 7, None))
    found = []
    for token in llm.generate(tokens(300), temp=0.0):
        found.append(token)
        if len(found) == 11:
            break
    llm.end_answer()
    greedy(plain, tokens(300), 11)
    plain.end_answer()
    assert (found, llm.n_tokens) == (expected[:11], plain.n_tokens)
    more = [*tokens(300), *found, *tokens(10, seed=4)]
    assert greedy(llm, more, 5) == greedy(plain, more, 5)


def test_a_policy_in_python_sees_the_attention_layers(make: Make) -> None:
    llm = make(SnapKVConfig(keep_ratio=0.2, window_size=8, policy="value"))
    assert len(greedy(llm, tokens(200), 10)) == 10
    assert llm.kept_positions().shape[0] == len(llm.cached_layers()) >= 3
