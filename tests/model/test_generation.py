"""Completions, chat and states after a compressed prompt: what llama_cpp.Llama does, it does."""

import itertools
import json
import pickle

import llama_cpp
import numpy as np
import pytest

from snapkv_local import SnapKVConfig
from snapkv_local.errors import NoRoomError
from snapkv_local.policies import reference

QUESTION = "In which room does the cooling pump stand?"


@pytest.fixture(scope="module")
def messages(document):
    return [{"role": "user", "content": f"{document[-1500:]}\n\n{QUESTION}"}]


def test_completion_goes_through_prefill(llm, prompt, greedy):
    expected = greedy(llm, prompt, 12)
    llm.reset()
    answer = llm.create_completion(prompt, max_tokens=12, temperature=0.0)
    assert answer["choices"][0]["text"] == llm.detokenize(expected, prev_tokens=prompt).decode()
    assert (llm.last_prefill.n_prompt, llm.last_prefill.n_kept) == (300, 96)
    assert answer["usage"]["completion_tokens"] == 12


def test_streamed_chat_says_what_the_whole_answer_says(llm, messages):
    whole = llm.create_chat_completion(messages, max_tokens=12, temperature=0.0)
    assert llm.last_prefill.n_prompt > 300
    llm.reset()
    chunks = list(llm.create_chat_completion(messages, max_tokens=12, temperature=0.0, stream=True))
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]


def test_grammar_is_obeyed(llm, prompt):
    grammar = llama_cpp.LlamaGrammar.from_string(
        'root ::= "room " [0-9] [0-9] [0-9]', verbose=False
    )
    answer = llm.create_completion(prompt, max_tokens=16, temperature=0.0, grammar=grammar)
    word, number = answer["choices"][0]["text"].split()
    assert word == "room"
    assert number.isdigit() and len(number) == 3


def test_a_tool_is_called(make, messages):
    llm = make(chat_format="chatml-function-calling")
    tool = {
        "type": "function",
        "function": {
            "name": "find",
            "parameters": {
                "type": "object",
                "properties": {"room": {"type": "integer", "minimum": 0, "maximum": 999}},
                "required": ["room"],
            },
        },
    }
    choice = {"type": "function", "function": {"name": "find"}}
    answer = llm.create_chat_completion(
        messages, tools=[tool], tool_choice=choice, max_tokens=48, temperature=0.0
    )
    call = answer["choices"][0]["message"]["tool_calls"][0]["function"]
    assert call["name"] == "find"
    assert isinstance(json.loads(call["arguments"])["room"], int)
    assert llm.last_prefill.n_kept == 96


def test_generation_goes_on_beyond_the_cells(llm, prompt, greedy):
    expected = greedy(llm, prompt, 64)
    llm.reset()
    answer = llm.create_completion(prompt, max_tokens=200, temperature=0.0)
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "length"  # max_tokens
    assert answer["usage"]["completion_tokens"] == 200
    assert choice["text"].startswith(llm.detokenize(expected, prev_tokens=prompt).decode())
    # room for 64, and each time as many are free again
    assert [stats.n_prompt for stats in llm.evictions] == [364, 428, 492]
    assert {stats.n_kept for stats in llm.evictions} == {96}
    assert llm.last_prefill.n_prompt == len(prompt) == llm.n_prompt
    # the state is intact: the last token can be taken back and evaluated again
    last = int(llm.input_ids[llm.n_tokens - 1])
    llm.n_tokens -= 1
    assert llm.logits_for([last]).shape == (1, llm.n_vocab())


def test_generation_ends_with_the_context(make, prompt):
    llm = make(n_ctx=512)
    answer = llm.create_completion(prompt, max_tokens=400, temperature=0.0)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == 512


def test_rows_of_the_prompt_and_of_the_answer_compete(make, prompt):
    llm = make(SnapKVConfig(budget=96, window_size=16, decode_cells=64, n_sink=4))
    for _ in zip(range(200), llm.generate(prompt, temp=0.0), strict=False):
        pass
    assert len(llm.evictions) == 3
    kept, end = llm.kept_positions(), llm.evictions[-1].n_prompt
    assert (kept[:, :, :4] == np.arange(4)).all()
    assert (np.diff(kept, axis=2) > 0).all()
    assert kept.max() < end - 16
    assert (kept < 300).any()
    assert (kept >= 300).any()


def test_what_is_evicted_again_is_what_the_rows_scores_say(make, prompt):
    """Against the reference, from the rows that were there: keys in the cache, positions in ids."""
    llm = make(SnapKVConfig.paper(budget=96, window_size=16, decode_cells=64))
    llm.prefill(prompt)
    llm.logits_for(prompt[:64])
    before = llm.kept_positions()
    seen = []

    def tap(d):
        q = np.ctypeslib.as_array(d.q, (d.n_head, d.n_queries, d.head_dim)).copy()
        k = np.ctypeslib.as_array(d.k, (d.n_head_kv, d.n_prompt, d.head_dim)).copy()
        seen.append((q, k, d.scale))

    llm._ctx.tap = tap
    assert llm._extend(llm._go_back_by(llm._n_again(0)), []).n_kept == 96

    n_rows = 96 + 64
    for (q, k, scale), old, new in zip(seen, before, llm.kept_positions(), strict=True):
        assert k.shape[1] == n_rows
        rows = reference.select(reference.scores(q, k, scale), 80)
        # rows 80.. are the old window and what was generated after it
        later = np.tile(np.arange(300 - 16, 300 + 64), (len(old), 1))
        positions = np.concatenate([old, later], axis=1)
        expected = np.take_along_axis(positions, rows.astype(int), axis=1)
        assert (
            np.mean([len(np.intersect1d(a, b)) / 80 for a, b in zip(expected, new, strict=True)])
            > 0.98
        )


def test_a_sequence_that_was_not_compressed_is_when_its_cells_run_out(make, plain, prompt):
    llm = make()
    llm.eval(prompt[:90])  # within the budget
    assert llm.last_prefill is None
    llm.eval(prompt[90:])
    assert llm.last_prefill.n_prompt == 300
    assert llm.last_prefill.n_kept == 96
    # all rows were there, so the last token has seen the whole prompt
    plain.reset()
    plain.eval(prompt)
    logits = [
        np.ctypeslib.as_array(x._ctx.get_logits(), (x.n_vocab(),)).copy() for x in (llm, plain)
    ]
    assert np.abs(logits[0] - logits[1]).max() < 1.5  # other chunks
    llm.reset()
    llm.prefill(prompt)
    assert llm.sample(temp=0.0) == plain.sample(temp=0.0)


def test_a_stream_that_ends_early_has_all_its_text(llm, prompt):
    llm.reset()
    whole = llm.create_completion(prompt, max_tokens=200, temperature=0.0)
    llm.reset()
    chunks = list(llm.create_completion(prompt, max_tokens=200, temperature=0.0, stream=True))
    assert "".join(c["choices"][0]["text"] for c in chunks) == whole["choices"][0]["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def go_on(llm, prompt, n):
    """The n most likely tokens, from what the context holds of the prompt."""
    return list(itertools.islice(llm.generate(prompt, temp=0.0), n))


def test_a_conversation_goes_on_where_it_was(llm, prompt, greedy):
    answer = greedy(llm, prompt, 8)
    first = llm.last_prefill
    more = llm.tokenize(b"\nAnd then", add_bos=False)
    assert len(go_on(llm, prompt + answer[:7] + more, 4)) == 4
    assert llm.last_prefill is first
    assert llm.input_ids[: 307 + len(more)].tolist() == prompt + answer[:7] + more


@pytest.mark.parametrize("n_new", [70, 150, 400])
def test_a_turn_that_does_not_fit_evicts_again(llm, prompt, greedy, n_new):
    answer = greedy(llm, prompt, 8)
    longer = prompt + answer[:7] + prompt[100:250] + prompt[:250]
    longer = longer[: 307 + n_new]
    before = llm.kept_positions()
    go_on(llm, longer, 1)
    assert llm.last_prefill.n_prompt == len(longer)
    assert llm.last_prefill.n_kept == 96
    kept = llm.kept_positions()
    old = kept[(kept < 300 - 16)]
    assert set(old) <= set(before.ravel())  # what the prompt has lost does not come back
    assert (kept >= 307).any()


def test_a_prompt_that_parts_within_the_compacted_rows_is_evaluated_anew(llm, prompt, greedy):
    other = [*prompt[:150], *prompt[10:160]]
    expected = greedy(llm, other, 8)
    greedy(llm, prompt, 2)
    assert not llm._ctx.kv_cache_seq_rm(-1, 150, -1)
    assert go_on(llm, other, 8) == expected


def test_a_prompt_that_parts_within_the_window_is_evaluated_anew(llm, prompt, greedy):
    """As another question about the same document: the kept rows are those of the first one."""
    other = [*prompt[:290], *prompt[:10]]
    expected = greedy(llm, other, 8)
    kept = llm.kept_positions()
    greedy(llm, prompt, 2)
    assert (llm.kept_positions() != kept).any()
    assert go_on(llm, other, 8) == expected
    np.testing.assert_array_equal(llm.kept_positions(), kept)


def test_the_same_prompt_goes_on_from_its_last_token(llm, prompt):
    llm.prefill(prompt)
    first = llm.last_prefill
    assert len(go_on(llm, prompt, 4)) == 4
    assert llm.last_prefill is first


def test_score_is_what_generation_sees(llm, prompt, greedy):
    tokens = greedy(llm, prompt, 12)
    llm.prefill(prompt)
    logits = llm.logits_for(tokens)
    assert (logits.shape, logits.dtype) == ((12, llm.n_vocab()), np.float32)
    assert llm.n_tokens == 312
    assert logits[:-1].argmax(axis=1).tolist() == tokens[1:]


def test_score_of_several_batches(make, prompt):
    llm = make(n_batch=32, n_ubatch=32)
    llm.prefill(prompt)
    at_once = llm.logits_for(prompt[:56])
    llm.prefill(prompt)
    expected = np.concatenate([llm.logits_for(prompt[:32]), llm.logits_for(prompt[32:56])])
    np.testing.assert_array_equal(at_once, expected)


@pytest.mark.parametrize("n_batch", [512, 32, 16])
def test_score_of_the_last_tokens(make, prompt, n_batch):
    llm = make(n_batch=n_batch, n_ubatch=32)
    llm.prefill(prompt)
    every = llm.logits_for(prompt[:56])
    for last in (1, 3, 40, 56, 99):
        llm.prefill(prompt)
        some = llm.logits_for(prompt[:56], last)
        assert some.shape == (min(last, 56), llm.n_vocab())
        # products of fewer rows may take another way through the processor
        np.testing.assert_allclose(some, every[-last:], atol=1e-3)
        assert llm.n_tokens == len(prompt) + 56
    llm.prefill(prompt)
    assert llm.logits_for(prompt[:8], 0).shape == (0, llm.n_vocab())


def test_score_beyond_the_free_cells(llm, prompt):
    llm.prefill(prompt)
    with pytest.raises(NoRoomError, match="65 tokens to score: the KV cache has 64 free cells"):
        llm.logits_for(prompt[:65])
    assert llm.n_tokens == 300


def test_logprobs_of_generated_tokens(make, prompt):
    llm = make(logits_all=True)
    answer = llm.create_completion(prompt, max_tokens=4, temperature=0.0, logprobs=2)
    logprobs = answer["choices"][0]["logprobs"]["token_logprobs"]
    assert len(logprobs) == 4
    assert all(np.isfinite(p) and p <= 0 for p in logprobs)


def decode(llm, token, n):
    found = []
    for _ in range(n):
        llm.eval([token])
        token = llm.sample(temp=0.0)
        found.append(token)
    return found


def test_a_loaded_state_goes_on_with_the_same_tokens(make, llm, prompt):
    llm.prefill(prompt)
    token = llm.sample(temp=0.0)
    state = llm.save_state()
    expected = decode(llm, token, 32)
    other = make()
    for target in (llm, other):
        target.load_state(state)
        assert decode(target, token, 32) == expected
        assert not target._ctx.kv_cache_seq_rm(-1, 100, -1)
    np.testing.assert_array_equal(other.kept_positions(), llm.kept_positions())


def test_a_pickled_copy_is_of_the_same_kind(llm, prompt, greedy):
    copy = pickle.loads(pickle.dumps(llm))
    try:
        assert (copy.snapkv, copy.keep_scores) == (llm.snapkv, True)
        assert greedy(copy, prompt, 8) == greedy(llm, prompt, 8)
    finally:
        copy.close()


def test_a_cache_of_states(make, prompt):
    llm = make()
    llm.set_cache(llama_cpp.LlamaRAMCache())
    first = llm.create_completion(prompt, max_tokens=6, temperature=0.0)
    llm.prefill(prompt[:200])
    second = llm.create_completion(prompt, max_tokens=6, temperature=0.0)
    assert len(second["choices"][0]["text"]) > 0
    assert first["usage"] == second["usage"]


def test_layers_and_settings_of_one_context_do_not_leak_to_the_next(make, plain, prompt, greedy):
    expected = greedy(plain, prompt, 8)
    make(SnapKVConfig(budget=64, decode_cells=64)).prefill(prompt)
    assert greedy(plain, prompt, 8) == expected


def test_no_fewer_tokens_than_none_are_cached(make, prompt):
    """Of a turn that is evaluated without generate(), which would count."""
    llm = make()
    llm.prefill(prompt)
    llm.eval(prompt[:60])
    llm.eval(prompt[60:70])
    assert llm.last_prefill.n_prompt == 370
    assert llm.n_cached == 0
