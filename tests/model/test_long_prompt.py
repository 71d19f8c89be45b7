"""A fact in a prompt of 20,000 tokens, compressed to 128 rows, on the CPU."""

import random

from snapkv_local import Llama, SnapKVConfig
from snapkv_local.eval.prose import generated
from snapkv_local.models.resolve import needle_model

N_TOKENS = 20_000
QUESTION = "What is the access code of the harbour office?"
FACT = "The access code of the harbour office is 58213. "


def test_a_fact_is_found_in_a_long_prompt() -> None:
    llm = Llama(
        str(needle_model()),
        snapkv=SnapKVConfig(budget=128),
        n_ctx=N_TOKENS + 2048,
        n_threads=1,
        n_threads_batch=1,
        verbose=False,
    )
    try:
        sentences = generated(random.Random(0), "test", N_TOKENS)
        # sentences by themselves have a few tokens more than in a text
        sizes = [len(llm.tokenize(s.encode(), add_bos=False)) for s in sentences]
        n = next(n for n in range(len(sizes)) if sum(sizes[:n]) >= 1.04 * N_TOKENS)
        sentences[n:] = []
        sentences.insert(n // 3, FACT)
        content = f"{''.join(sentences).strip()}\n\n{QUESTION}"
        answer = llm.create_chat_completion(
            [{"role": "user", "content": content}], max_tokens=32, temperature=0
        )
        assert "58213" in answer["choices"][0]["message"]["content"]
        assert llm.last_prefill is not None
        assert llm.last_prefill.n_prompt >= N_TOKENS
        assert llm.last_prefill.n_kept == 128
        # with the cells for an answer of 1,024 tokens
        assert llm.last_prefill.bytes_kv < llm.last_prefill.bytes_kv_full / 15
    finally:
        llm.close()
