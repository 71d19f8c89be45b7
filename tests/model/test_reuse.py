"""What a request takes from the requests before it: usage says it, and cache_prompt=False ends it."""

from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `server` is not installed")

from snapkv_local import SnapKVConfig
from snapkv_local.server.engine import Engine
from snapkv_local.server.resting import Resting
from snapkv_local.server.schemas import ChatRequest, CompletionRequest
from snapkv_local.server.worker import Chunk, Done

CONFIGS = {
    "compact": {},
    "vault": {"snapkv": SnapKVConfig(budget=96, window_size=16, decode_cells=64, vault="ram")},
    "full": {"snapkv": None, "flash_attn": True},
}


# tokens computed beside the new ones: at most the window; from a vault 64 in all at least (docs/limits.md)
BESIDE_NEW = 16
FROM_VAULT = 64


class NoJob:
    """Nobody waits for it, and nobody ends it."""

    def check(self) -> None: ...
    def emit(self, _event: Any) -> None: ...


@pytest.fixture(scope="module", params=list(CONFIGS))
def engine(request: Any, make: Any) -> Engine:
    llm = make(logits_all=True, n_threads_batch=1, **CONFIGS[request.param])
    engine = Engine(lambda: (llm, {}, Resting(0, None, 0)), "model", None)
    engine.load()
    return engine


def complete(engine: Engine, prompt: list[int], **fields: Any) -> tuple[Any, dict[str, Any]]:
    """Text and logprobs, which tell logits from others; and usage."""
    body = {"prompt": prompt, "max_tokens": 4, "temperature": 0, "logprobs": 5, **fields}
    *chunks, done = engine.complete(CompletionRequest.model_validate(body), NoJob())  # type: ignore[arg-type]
    assert isinstance(done, Done)
    assert done.usage["prompt_tokens_details"] == {
        "cached_tokens": done.usage["snapkv"]["n_cached"]
    }
    choices = [chunk.data["choices"][0] for chunk in chunks if isinstance(chunk, Chunk)]
    return [(choice["text"], choice["logprobs"]) for choice in choices], done.usage


def most_computed(engine: Engine, n_new: int) -> int:
    """Tokens of a prompt that goes on with so many new ones."""
    config = engine.defaults.config
    has_vault = config is not None and config.vault != "off"
    return FROM_VAULT if has_vault else n_new + BESIDE_NEW


@pytest.mark.parametrize("n", [60, 200])  # below the budget, and above
def test_without_the_cache_an_answer_is_the_same_whatever_came_before(
    engine: Engine, prompt: list[int], n: int
) -> None:
    asked = prompt[:n]
    first, usage = complete(engine, asked, cache_prompt=False)
    assert usage["snapkv"]["n_cached"] == 0
    complete(engine, [*asked[: n // 2], *prompt[200:230]])  # shares a prefix, then another batch
    again, usage = complete(engine, asked, cache_prompt=False)
    assert usage["snapkv"]["n_cached"] == 0
    assert again == first


@pytest.mark.parametrize("n", [60, 200])
def test_what_is_reused_is_said(engine: Engine, prompt: list[int], n: int) -> None:
    asked = prompt[:n]
    _, usage = complete(engine, asked, cache_prompt=False)
    assert usage["snapkv"]["n_cached"] == 0
    said = engine.llm._input_ids.tolist()
    longer = [*said, *prompt[200:220]]
    _, usage = complete(engine, longer)
    n_computed = len(longer) - usage["snapkv"]["n_cached"]
    assert 20 <= n_computed <= most_computed(engine, 20)
    assert usage["prompt_tokens"] == len(longer)


def test_evictions_during_the_answer_change_nothing_of_it(
    engine: Engine, prompt: list[int]
) -> None:
    complete(engine, prompt[:200], cache_prompt=False)
    longer = [*engine.llm._input_ids.tolist(), *prompt[200:210]]
    _, usage = complete(engine, longer, max_tokens=150)
    n_computed = len(longer) - usage["snapkv"]["n_cached"]
    assert 10 <= n_computed <= most_computed(engine, 10)


def test_a_bias_moves_the_answer(engine: Engine) -> None:
    a = engine.llm.tokenize(b"A", add_bos=False)[0]
    messages = [{"role": "user", "content": "Hello"}]
    body = {"messages": messages, "max_tokens": 3, "temperature": 0, "logit_bias": {str(a): 100}}
    *chunks, _ = engine.chat(ChatRequest.model_validate(body), NoJob())  # type: ignore[arg-type]
    deltas = [c.data["choices"][0]["delta"] for c in chunks if isinstance(c, Chunk)]
    assert "".join(delta.get("content") or "" for delta in deltas) == "AAA"
