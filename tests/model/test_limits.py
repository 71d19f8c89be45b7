"""Heads that cannot be copied, and the ends of the context."""

import llama_cpp
import pytest

from snapkv_local import Llama, SnapKVConfig
from snapkv_local.errors import NoRoomError, PromptError, UnsupportedModelError


@pytest.fixture
def small_heads(write_model):
    """A llama of one layer with heads of 32 elements: 34 bytes in q8_0."""

    def add(writer):
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_dimension_count(32)

    tensors = {
        "attn_norm": (64,),
        "attn_q": (64, 64),
        "attn_k": (64, 64),
        "attn_v": (64, 64),
        "attn_output": (64, 64),
        "ffn_norm": (64,),
        "ffn_gate": (96, 64),
        "ffn_up": (96, 64),
        "ffn_down": (64, 96),
    }
    return write_model("llama", 96, tensors, add)


def test_a_cache_in_f32_is_refused(small_heads):
    f32 = llama_cpp.GGML_TYPE_F32
    with pytest.raises(UnsupportedModelError, match="rounds a KV cache in f32"):
        Llama(small_heads, snapkv=SnapKVConfig(budget=64), n_ctx=128, type_k=f32, verbose=False)


def test_heads_that_are_no_multiple_of_4_bytes_are_refused(small_heads):
    q8_0 = llama_cpp.GGML_TYPE_Q8_0
    with pytest.raises(
        UnsupportedModelError, match="32 elements in q8_0 is not a multiple of 4 bytes"
    ):
        Llama(
            small_heads,
            snapkv=SnapKVConfig(budget=64),
            n_ctx=128,
            type_k=q8_0,
            type_v=q8_0,
            verbose=False,
        )


def test_the_same_heads_pass_in_f16(small_heads, make):
    llm = make(SnapKVConfig(budget=64, window_size=16), path=small_heads, n_ctx=128)
    assert llm.prefill(list(range(32)) * 4).n_kept == 64


def test_generation_ends_at_the_end_of_the_context(make, prompt, greedy):
    # the cache has cells for more tokens than the context has positions
    llm = make(n_ctx=256, n_batch=128)
    tokens = greedy(llm, prompt[:250], 100)
    # positions 250 to 255 are evaluated, and one more is sampled
    assert len(tokens) == 7
    assert llm.n_tokens == 256
    assert greedy(llm, prompt[:250], 7) == tokens


def test_score_ends_at_the_end_of_the_context(make, prompt):
    llm = make(n_ctx=256, n_batch=128)
    llm.prefill(prompt[:250])
    with pytest.raises(NoRoomError, match="7 tokens to score: the context has 6 positions left"):
        llm.logits_for(prompt[:7])
    assert llm.logits_for(prompt[:6]).shape[0] == 6


def test_reset_and_a_short_prompt_after_a_long_one(llm, prompt, plain, greedy):
    llm.prefill(prompt[:200])
    llm.reset()
    assert greedy(llm, prompt[:60], 8) == greedy(plain, prompt[:60], 8)
    assert llm.last_prefill is None


def test_a_context_that_llama_cpp_rounds_up_is_as_long_as_it_was_asked_for(
    make, prompt, document, greedy
):
    llm = make(n_ctx=280)
    assert (llm.n_ctx(), llama_cpp.llama_n_ctx(llm.ctx)) == (280, 512)
    with pytest.raises(
        PromptError, match="prompt of 281 tokens: is longer than the context of 280; raise n_ctx"
    ):
        llm.prefill(prompt[:281])
    with pytest.raises(PromptError, match="exceed context window of 280; raise n_ctx"):
        llm.create_completion(document[:2000])
    # positions 275 to 279 are evaluated, and one more is sampled
    assert len(greedy(llm, prompt[:275], 100)) == 6
