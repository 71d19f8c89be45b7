"""Several conversations of one Llama: each is what it would be alone, and nothing of one is in another."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from at_once import at_once
from open_files import IN_PROC, keep_names
from refused import refused

from snapkv_local import Llama, SnapKVConfig, mapped
from snapkv_local.errors import ConfigError
from snapkv_local.server.errors import ApiError
from snapkv_local.server.pool import Pool
from snapkv_local.server.resting import Resting
from snapkv_local.storage import new_file

CONFIG = SnapKVConfig(budget=96, window_size=16, decode_cells=64)
N_PLACES = 3


@pytest.fixture(scope="module")
def load(model_path: str) -> Iterator[Callable[..., Llama]]:
    """Loads the model; all are closed at the end."""
    made: list[Llama] = []

    def load(config: SnapKVConfig | None = CONFIG, **kwargs: Any) -> Llama:
        usual = {"n_ctx": 1024, "n_batch": 128, "n_ubatch": 128, "n_threads": 1}
        made.append(
            Llama(model_path, snapkv=config, n_threads_batch=1, verbose=False, **usual, **kwargs)
        )
        return made[-1]

    yield load
    for llm in made:
        llm.close()


@pytest.fixture(scope="module")
def alone(load: Callable[..., Llama]) -> Llama:
    return load()


@pytest.fixture(scope="module")
def several(load: Callable[..., Llama]) -> Llama:
    return load(n_parallel=N_PLACES)


def prompt_of(llm: Llama, secret: int, n: int = 150) -> list[int]:
    """A text of so many tokens that has no more in common with another one than chance has it."""
    return np.random.default_rng(secret).integers(300, llm.n_vocab(), n).tolist()


def answer(llm: Llama, prompt: list[int], n: int = 6) -> tuple[list[int], np.ndarray]:
    """The likeliest tokens behind a prompt, and the logits of each: [n, n_vocab]."""
    tokens, rows = [], []
    for token in llm.generate(prompt, temp=0.0):
        tokens.append(token)
        rows.append(llm._logits(1)[0].copy())
        if len(tokens) == n:
            break
    llm.end_answer()
    return tokens, np.array(rows)


def test_each_conversation_answers_as_it_would_alone(alone: Llama, several: Llama) -> None:
    prompts = [prompt_of(alone, secret, n) for secret, n in ((1, 300), (2, 40), (3, 180))]
    expected = [answer(alone, prompt) for prompt in prompts]
    others = [several.conversation() for _ in range(N_PLACES - 1)]
    llms = [several, *others]

    one_by_one = [answer(llm, prompt) for llm, prompt in zip(llms, prompts, strict=True)]
    for (tokens, rows), (same_tokens, same_rows) in zip(expected, one_by_one, strict=True):
        assert tokens == same_tokens
        np.testing.assert_array_equal(rows, same_rows)

    for llm in llms:
        llm.reset()
    together = at_once(
        [lambda llm=llm, p=p: answer(llm, p, 24) for llm, p in zip(llms, prompts, strict=True)]
    )
    for (tokens, rows), (found_tokens, found) in zip(expected, together, strict=True):
        # a batch of several tokens is summed in another order, and so rounded otherwise
        assert tokens == found_tokens[: len(tokens)]
        error = ((found[: len(rows)] - rows) ** 2).sum() / (rows**2).sum()
        assert error < 1e-4
    assert several._ctx.gate.n_steps < 3 * 24 + 3 * 6  # they shared some

    with refused(ConfigError, "conversation()"):
        several.conversation()
    for llm in others:
        llm.close()
    again = several.conversation()
    assert again.n_tokens == 0 and again._ctx.info().n_prompt == 0
    assert answer(again, prompts[1])[0] == expected[1][0]
    again.close()


def test_an_error_of_one_conversation_is_no_other_ones(several: Llama) -> None:
    other = several.conversation()
    prompt = prompt_of(several, 4)

    def fails() -> str:
        def stop() -> None:
            raise InterruptedError

        other.on_token = stop
        with pytest.raises(InterruptedError):
            answer(other, prompt)
        other.on_token = None
        return "failed"

    several.reset()
    found, said = at_once([lambda: answer(several, prompt, 16), fails])
    assert len(found[0]) == 16 and said == "failed"
    assert answer(other, prompt, 16)[0] == found[0]
    other.close()


def test_others_go_on_while_a_long_prompt_is_read(alone: Llama, several: Llama) -> None:
    long, short = prompt_of(alone, 5, 900), prompt_of(alone, 6, 30)
    expected = [answer(alone, prompt) for prompt in (long, short)]
    other, third = several.conversation(), several.conversation()
    begun = threading.Event()
    during: list[int] = []

    def progress(done: int, total: int) -> None:
        during.append(other.n_tokens)
        begun.set()

    def later(function: Callable[[], Any]) -> Any:
        assert begun.wait(60)
        return function()

    def leaves() -> str:
        """Its client has gone before its own prompt's turn comes."""

        def stop(_done: int, _total: int) -> None:
            raise InterruptedError

        third.prefill_progress = stop
        with pytest.raises(InterruptedError):
            third.prefill(prompt_of(alone, 7, 200))
        return "left"

    several.reset()
    several.prefill_progress = progress
    found = at_once(
        [
            lambda: answer(several, long),
            lambda: later(lambda: answer(other, short, 6)),
            lambda: later(leaves),
        ]
    )
    several.prefill_progress = None
    assert found[2] == "left"
    for (tokens, rows), (found_tokens, found_rows) in zip(expected, found[:2], strict=True):
        assert tokens == found_tokens
        np.testing.assert_allclose(found_rows, rows, rtol=1e-2, atol=1e-2)
    np.testing.assert_array_equal(found[0][1][0], expected[0][1][0])
    # the short one was there before the long one had been read
    assert during[0] == 0 and during[-1] == len(short) + 5
    for llm in (other, third):
        llm.close()


def test_the_full_cache_holds_one(load: Callable[..., Llama]) -> None:
    with refused(ConfigError, "n_parallel=2"):
        load(None, n_parallel=2)


@pytest.fixture
def make_pool(load: Callable[..., Llama], several: Llama) -> Callable[..., Pool]:
    return lambda *args: Pool(several, Resting(*args))


def turn(pool: Pool, prompt: list[int], **options: Any) -> tuple[list[int], np.ndarray, int]:
    """What a request gets: answer, logits, and how many tokens were there."""
    with pool.llama() as llm:
        llm.place = lambda tokens: pool.place(llm, tokens, pool.llm.snapkv, **options)
        return *answer(llm, prompt), llm.n_cached


@pytest.mark.parametrize("where", ["ram", "disk", pytest.param("windows", marks=IN_PROC)])
def test_conversations_come_back_from_where_they_rest(
    make_pool: Callable[..., Pool],
    alone: Llama,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    """Twice as many as there are places, at random: each is as alone, and only what is new is evaluated."""
    if where == "windows":  # a disk whose files stay while they are open
        monkeypatch.setattr(new_file, "fcntl", None)
        monkeypatch.setattr(mapped, "REPLACEABLE", False)
        keep_names(monkeypatch)
    several_bytes = 1 << 20
    pool = make_pool(*((1 << 30,) if where == "ram" else (several_bytes, tmp_path, 1 << 30)))
    n_talks = 2 * N_PLACES
    texts = {talk: prompt_of(alone, 100 + talk) for talk in range(n_talks)}
    seen: dict[int, list[Any]] = {talk: [] for talk in texts}
    order = np.random.default_rng(5).permutation(np.repeat(np.arange(n_talks), 4)).tolist()
    for talk in order:
        text = texts[talk]
        tokens, rows, n_cached = turn(pool, text)
        # of a last answer the last token was drawn and not evaluated
        assert not seen[talk] or n_cached >= len(text) - 11, (talk, n_cached, len(text))
        seen[talk].append((list(text), tokens, rows))
        texts[talk] = [*text, *tokens, *prompt_of(alone, len(seen[talk]), 10)]
    if where != "ram":
        assert list(tmp_path.glob("conversation-*.snapkv"))
        assert pool.resting.bytes_ram <= several_bytes
    for turns in seen.values():
        alone.reset()
        for text, tokens, rows in turns:
            found = answer(alone, text)
            assert found[0] == tokens
            np.testing.assert_array_equal(found[1], rows)


def test_what_rests_in_files_outlives_the_server(
    make_pool: Callable[..., Pool], alone: Llama, tmp_path: Path
) -> None:
    texts = [prompt_of(alone, 200 + talk) for talk in range(N_PLACES)]
    pool = make_pool(0, tmp_path, 1 << 30)
    first = [turn(pool, text) for text in texts]
    warm = [turn(pool, text) for text in texts]  # which goes on from the prompt's last token
    pool.close()
    files = sorted(tmp_path.iterdir())
    assert len(files) == N_PLACES

    # half of one of them: it is refused whole
    damaged = bytearray(files[0].read_bytes())
    damaged[len(damaged) // 2] ^= 1
    files[0].write_bytes(damaged)
    again = make_pool(0, tmp_path, 1 << 30)
    again.resting.open()
    n_warm = 0
    for i, text in enumerate(texts):
        tokens, rows, n_cached = turn(again, text)
        n_warm += n_cached > 0
        expected = warm[i] if n_cached else first[i]
        assert tokens == expected[0]
        np.testing.assert_array_equal(rows, expected[1])
    assert n_warm == N_PLACES - 1


def test_a_prompt_that_begins_as_another_gets_a_copy(
    make_pool: Callable[..., Pool], alone: Llama
) -> None:
    pool = make_pool(0)
    common = prompt_of(alone, 300, 80)  # below the budget: all rows are there
    one, other = [*common, *prompt_of(alone, 301, 8)], [*common, *prompt_of(alone, 302, 8)]
    turn(pool, one)
    assert turn(pool, other)[2] == 80
    held = [place for place in pool.places if not place.is_empty]
    assert len(held) == 2
    # nothing of the one was lost
    assert turn(pool, one)[2] >= 87
    # and nothing is taken where it may not be
    assert turn(pool, one, fresh=True)[2] == 0


@pytest.mark.parametrize("where", ["place", "ram", "disk"])
def test_a_conversation_is_erased_wherever_it_is(
    make_pool: Callable[..., Pool], alone: Llama, tmp_path: Path, where: str
) -> None:
    pool = make_pool(0 if where == "disk" else 1 << 30, tmp_path, 1 << 30)
    prompts = [prompt_of(alone, 500 + i) for i in range(2 if where == "place" else N_PLACES + 1)]
    first = turn(pool, prompts[0])
    id_ = next(place.id for place in pool.places if not place.is_empty)
    for prompt in prompts[1:]:
        turn(pool, prompt)
    (held,) = [each for each in pool.held() if each.id == id_]
    assert held.figures is not None  # it was stopped, so they are those that hold for it anyway
    assert held.figures["n_kept"] == CONFIG.budget
    n_files = len(list(tmp_path.iterdir()))
    index, n_tokens = pool.erase(id_)
    assert (index >= 0) == (where == "place")
    assert n_tokens >= len(prompts[0])
    assert len(list(tmp_path.iterdir())) == n_files - (where == "disk")
    assert id_ not in [each.id for each in pool.held()]
    with pytest.raises(ApiError, match="no conversation"):
        pool.erase(id_)
    again = turn(pool, prompts[0])
    assert again[2] == 0
    assert again[0] == first[0]
    np.testing.assert_array_equal(again[1], first[1])


def test_a_conversation_that_is_answered_is_erased_when_that_ends(
    make_pool: Callable[..., Pool], alone: Llama
) -> None:
    pool = make_pool(1 << 30)
    with pool.llama() as llm:
        place = pool.place(llm, prompt_of(alone, 600), CONFIG)
        id_ = place.id
        answer(llm, prompt_of(alone, 600))
        assert pool.erase(id_)[0] == place.index
        assert place.user is llm
    assert place.is_empty
    assert id_ not in [each.id for each in pool.held()]


def test_a_sequence_can_be_named(make_pool: Callable[..., Pool], alone: Llama) -> None:
    pool = make_pool(0)
    prompt = prompt_of(alone, 400)
    turn(pool, prompt, index=1)
    assert [place.is_empty for place in pool.places] == [True, False, True]
    turn(pool, prompt, index=2)
    assert [place.is_empty for place in pool.places] == [True, False, False]
