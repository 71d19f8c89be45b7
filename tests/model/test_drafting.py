"""Drafts: at temperature 0 an answer has the tokens that it has without them, whoever guesses."""

import dataclasses
import json
import threading
from functools import partial
from itertools import islice

import numpy as np
import pytest
from at_once import at_once
from llama_cpp import LogitsProcessorList
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
from refused import refused

from snapkv_local import ModelDraft, PromptLookup, SnapKVConfig
from snapkv_local.bench.make_model import make_model
from snapkv_local.bench.shapes import SHAPES
from snapkv_local.errors import ConfigError
from snapkv_local.server.pool import Pool
from snapkv_local.server.resting import Resting

SMALL = {"n_layer": 6, "n_embd": 128, "n_ff": 128, "n_head": 4, "n_head_kv": 2, "head_dim": 64}
CONFIG = SnapKVConfig(budget=96, window_size=16, decode_cells=64)
SEEDS = (1, 2)


@pytest.fixture(scope="module")
def gemmas(tmp_path_factory):
    """Paths of two models with one vocabulary and sliding windows, that agree about nothing."""
    shape = dataclasses.replace(SHAPES["gemma3-4b"], n_vocab=512, n_swa=32, **SMALL)
    paths = [tmp_path_factory.mktemp("gemma") / "gemma3.gguf" for _ in SEEDS]
    for seed, path in zip(SEEDS, paths, strict=True):
        make_model(shape, "f16", path, name="gemma3", seed=seed)
    return list(map(str, paths))


@pytest.fixture(scope="module")
def expected(llm, prompt, greedy):
    """An answer without drafts, during which rows are evicted three times."""
    tokens = greedy(llm, prompt, 200)
    assert ends(llm.evictions) == [364, 428, 492]
    return tokens


def ends(evictions):
    return [stats.n_prompt for stats in evictions]


def drafter(llm):
    return llm.draft_model.llm


@pytest.mark.parametrize("n_max", [1, 3, 8])
def test_a_model_that_drafts_for_itself_is_always_right(make, prompt, greedy, expected, n_max):
    llm = make(draft_model=ModelDraft(make(), n_max=n_max))
    assert greedy(llm, prompt, 200) == expected
    # both evict at other places, where the rows of one are chosen before the other's
    assert llm.n_accepted > 0.8 * llm.n_drafted > 0
    # as without drafts
    assert (llm.n_tokens, ends(llm.evictions)) == (500, [364, 428, 492])
    assert drafter(llm).last_prefill.n_kept == 96


def test_no_draft_is_wrong_where_nothing_is_evicted(make, prompt, greedy):
    config = SnapKVConfig(budget=96, window_size=16, decode_cells=128)
    llm = make(config, draft_model=ModelDraft(make(config), n_max=4))
    assert greedy(llm, prompt, 100) == greedy(make(config), prompt, 100)
    assert (llm.n_drafted, llm.n_accepted) == (80, 80)
    assert drafter(llm).last_prefill.n_prompt == 300  # compressed where the prompt ends


@pytest.mark.parametrize(
    "draft", [PromptLookup(), PromptLookup(n_max=2), LlamaPromptLookupDecoding(num_pred_tokens=3)]
)
def test_prompt_lookup_changes_no_token(make, prompt, greedy, expected, draft):
    llm = make(draft_model=draft)
    assert greedy(llm, prompt, 200) == expected
    assert 0 < llm.n_accepted < llm.n_drafted
    assert ends(llm.evictions) == [364, 428, 492]


def test_prompt_lookup_takes_what_followed_last():
    lookup = PromptLookup(n_max=3)
    ids = np.array([1, 2, 3, 4, 9, 2, 3, 5, 6, 7, 2, 3], np.intc)
    assert lookup(ids).tolist() == [5, 6, 7]
    assert lookup(np.append(ids, 8).astype(np.intc)).tolist() == []
    assert lookup(ids[:7]).tolist() == [4, 9, 2]  # another conversation


@pytest.mark.parametrize("seed", [0, 1], ids=["itself", "another model"])
@pytest.mark.parametrize("n_prompt", [60, 700])
def test_sliding_windows(make, gemmas, greedy, seed, n_prompt):
    config = SnapKVConfig(budget=128, window_size=8, decode_cells=32, layer_group=1)
    sizes = {"n_ctx": 1024, "n_batch": 64, "n_ubatch": 64}
    prompt = np.random.default_rng(1).integers(10, 500, n_prompt).tolist()
    plain = make(config, gemmas[0], **sizes)
    tokens = greedy(plain, prompt, 60)
    draft = ModelDraft(make(config, gemmas[seed], **sizes), n_max=5)
    llm = make(config, gemmas[0], **sizes, draft_model=draft)
    assert greedy(llm, prompt, 60) == tokens
    assert llm.n_drafted > 40
    if seed == 0:
        assert llm.n_accepted >= llm.n_drafted - 1
    assert ends(llm.evictions) == ends(plain.evictions)


def test_the_full_cache(make, plain, prompt, greedy):
    llm = make(None, flash_attn=True, draft_model=ModelDraft(make()))
    assert greedy(llm, prompt * 2, 60) == greedy(plain, prompt * 2, 60)
    assert llm.n_accepted > 0
    assert llm.n_tokens == plain.n_tokens == 660


def test_draws_of_a_seed_are_the_same(make, llm, prompt):
    drafting = make(draft_model=ModelDraft(make()))
    texts = []
    for model in (llm, drafting):
        model.reset()
        answer = model.create_completion(prompt, max_tokens=48, temperature=1.5, seed=3)
        texts.append(answer["choices"][0]["text"])
    assert texts[0] == texts[1]
    assert 0 < drafting.n_accepted < drafting.n_drafted


def test_improbable_tokens_and_short_drafts_are_left_out(make, prompt, greedy):
    sure = make(draft_model=ModelDraft(make(), n_max=6, p_min=0.1))
    unsure = make(draft_model=ModelDraft(make(), n_max=6))
    greedy(sure, prompt, 30), greedy(unsure, prompt, 30)
    assert 0 < sure.n_drafted < unsure.n_drafted
    llm = make(draft_model=ModelDraft(make(), n_max=6, n_min=6, p_min=1))
    greedy(llm, prompt, 8)
    assert llm.n_drafted == 0


def test_the_conversation_goes_on_in_both(make, llm, prompt):
    drafting = make(draft_model=ModelDraft(make()))
    found = []
    for model in (llm, drafting):
        tokens = list(prompt)
        model.reset()
        for more in ([], prompt[:20], prompt[40:45]):
            tokens += more
            tokens += islice(model.generate(tokens, temp=0.0), 10)
        found.append(tokens)
    assert found[0] == found[1]
    # nothing was computed again: 300, then turns
    assert drafter(drafting).last_prefill.n_prompt == drafting.last_prefill.n_prompt == 300
    # and another one
    assert list(islice(drafting.generate(prompt[:200], temp=0.0), 5)) == list(
        islice(llm.generate(prompt[:200], temp=0.0), 5)
    )


def test_processors_and_stopping_see_no_drafts(make, prompt, greedy, expected):
    llm = make(draft_model=ModelDraft(make(), n_max=5))
    seen = []

    def look(ids, logits):
        seen.append(ids.tolist())
        return logits

    llm.reset()
    tokens = llm.generate(prompt, temp=0.0, logits_processor=LogitsProcessorList([look]))
    assert list(islice(tokens, 20)) == expected[:20]
    assert seen == [[*prompt, *expected[:i]] for i in range(20)]


def test_logprobs_are_those_without_drafts(make, llm, prompt):
    drafting = make(draft_model=ModelDraft(make()))
    found = []
    for model in (llm, drafting):
        model.reset()
        answer = model.create_completion(prompt, max_tokens=16, temperature=0.0, logprobs=1)
        found.append(answer["choices"][0]["logprobs"]["token_logprobs"])
    np.testing.assert_allclose(*found, atol=1e-2)


def test_a_schema_is_obeyed_as_without_drafts(make, llm):
    room = {"type": "string", "pattern": "^[A-Z][0-9]{3}$"}
    schema = {"type": "object", "properties": {"room": room}, "required": ["room"]}
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    asked = [{"role": "user", "content": "The pump stands in B417.\n\nWhere does the pump stand?"}]
    drafting = make(draft_model=ModelDraft(make()))
    texts = []
    for model in (llm, drafting):
        model.reset()
        answer = model.create_chat_completion(
            asked, response_format=form, max_tokens=40, temperature=0.0
        )
        texts.append(answer["choices"][0]["message"]["content"])
    assert texts[0] == texts[1]
    assert len(json.loads(texts[0])["room"]) == 4
    assert drafting.n_drafted > drafting.n_accepted


def test_ctrl_c_in_the_drafts_prefill(make, prompt, greedy, expected, ctrl_c):
    llm = make(draft_model=ModelDraft(make()))
    draft = llm.draft_model
    tokens = llm.generate(prompt, temp=0.0)
    assert next(tokens) == expected[0]
    draft.on_step = ctrl_c.set
    with pytest.raises(KeyboardInterrupt):
        next(tokens)
        threading.Event().wait(60)  # the signal may come late
    assert (drafter(llm).prefill_progress, llm.n_tokens) == (None, 300)
    assert greedy(llm, prompt, 20) == expected[:20]
    assert llm.n_accepted > 0


def test_what_is_called_before_each_token_may_end_a_draft(make, prompt, greedy, expected):
    llm = make(draft_model=ModelDraft(make()))
    calls = []

    def on_token():
        calls.append(llm.n_tokens)
        if len(calls) == 3:  # the first token's, and the prefill's of the draft
            raise TimeoutError

    llm.on_token = on_token
    with pytest.raises(TimeoutError):
        greedy(llm, prompt, 20)
    assert drafter(llm).n_tokens == 0
    llm.on_token = None
    assert greedy(llm, prompt, 20) == expected[:20]


def test_other_vocabularies_are_refused(make, smollm2, gemmas):
    for path in (smollm2, gemmas[0]):
        with refused(ConfigError, "draft_model"):
            make(draft_model=ModelDraft(make(path=path)))


def test_shorter_contexts_and_vaults_are_refused(make):
    with refused(ConfigError, "draft_model"):
        make(draft_model=ModelDraft(make(n_ctx=512)))
    with refused(ConfigError, "vault=ram"):
        ModelDraft(make(dataclasses.replace(CONFIG, vault="ram")))


@pytest.mark.parametrize(
    ("settings", "subject"),
    [({"n_max": -1}, "n_max=-1"), ({"n_min": 4}, "n_min=4"), ({"p_min": 1.5}, "p_min=1.5")],
)
def test_numbers_out_of_range_are_refused(llm, settings, subject):
    with refused(ConfigError, subject):
        ModelDraft(llm, **settings)


def of_several(make, kind):
    """A Llama with room for two conversations, and what drafts for each."""
    draft = PromptLookup() if kind == "lookup" else ModelDraft(make(n_parallel=2))
    return make(n_parallel=2, draft_model=draft)


@pytest.fixture(scope="module")
def talks(make, prompt, greedy):
    """Three prompts, and the answer to each without drafts, during which rows are evicted."""
    texts = [prompt, prompt[:90] * 2, prompt[200:280] * 2]
    alone = make()
    return [(text, greedy(alone, text, 70)) for text in texts]


@pytest.mark.parametrize("kind", ["lookup", "model"])
def test_each_of_several_conversations_has_its_own_drafts(make, talks, kind):
    llm = of_several(make, kind)
    other = llm.conversation()
    both = list(zip((llm, other), talks, strict=False))

    in_turn = [one.generate(text, temp=0.0) for one, (text, _) in both]
    found = [[], []]
    for _ in range(70):
        for tokens, answer in zip(found, in_turn, strict=True):
            tokens.append(next(answer))
    for answer in in_turn:
        answer.close()
    assert found == [tokens for _, tokens in talks[:2]]
    assert all(one.n_accepted > 0 and len(one.evictions) > 0 for one, _ in both)

    def answer(one, text):
        one.reset()
        return list(islice(one.generate(text, temp=0.0), 30))

    found = at_once([partial(answer, one, text) for one, (text, _) in both])
    assert found == [tokens[:30] for _, tokens in talks[:2]]

    other.close()
    other = llm.conversation()
    if kind == "model":
        assert drafter(other).n_tokens == 0 and drafter(llm).n_tokens > 0
    assert list(islice(other.generate(talks[2][0], temp=0.0), 30)) == talks[2][1][:30]
    other.close()


@pytest.mark.parametrize("kind", ["lookup", "model"])
def test_drafts_of_a_server_go_with_its_conversations(make, talks, kind):
    alone, pool = make(), Pool(of_several(make, kind), Resting(1 << 30))
    found = [[] for _ in talks]
    for i in (0, 1, 2, 0, 2, 1):  # more than there are places
        with pool.llama() as llm:
            llm.place = lambda ids, llm=llm: pool.place(llm, ids, CONFIG)
            found[i].append(list(islice(llm.generate(talks[i][0], temp=0.0), 24)))
            llm.end_answer()
            assert llm.n_accepted > 0
    for (text, _), answers in zip(talks, found, strict=True):
        alone.reset()
        assert answers == [list(islice(alone.generate(text, temp=0.0), 24)) for _ in range(2)]
    assert len({id(place.conversation.state["draft_model"]) for place in pool.places}) == 2
    pool.close()


def test_a_draft_model_with_less_room_is_refused(make):
    with refused(ConfigError, "draft_model"):
        make(n_parallel=2, draft_model=ModelDraft(make()))
