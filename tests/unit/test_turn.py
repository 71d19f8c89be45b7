"""What a turn is, by where the conversation stands."""

from dataclasses import replace

import pytest

from snapkv_local import SnapKVConfig
from snapkv_local.llama.turn import Standing, Turn, decide, n_again

COMPACT = SnapKVConfig(budget=96, window_size=16, decode_cells=64)
VAULT = replace(COMPACT, vault="ram")
CHOOSER = SnapKVConfig(budget=96, window_size=16, decode_cells=64, policy="value")

# of a prompt of 300 tokens that was compressed, and of an answer of 20
BEGIN = Standing(n_new=300, n_tokens=0, n_ctx=512, n_free=160, is_answer=False)
TURN = Standing(n_new=40, n_tokens=320, n_ctx=512, n_free=44, is_answer=False)
ANSWER = Standing(n_new=1, n_tokens=364, n_ctx=512, n_free=0, is_answer=True)

RECURRENT = {"goes_back": False}


@pytest.mark.parametrize(
    ("config", "at", "turn"),
    [
        # a prompt
        (COMPACT, BEGIN, Turn.PREFILL),
        (COMPACT, replace(BEGIN, n_new=96), Turn.DECODE),  # all of its rows stay
        (VAULT, replace(BEGIN, n_new=96), Turn.PREFILL),  # the vault gets its rows
        (VAULT, replace(BEGIN, n_new=1), Turn.DECODE),
        (COMPACT, replace(BEGIN, n_new=600), Turn.PREFILL),  # which says that it is too long
        # a conversation that goes on
        (COMPACT, TURN, Turn.DECODE),
        (COMPACT, replace(TURN, n_new=44), Turn.DECODE),
        (COMPACT, replace(TURN, n_new=45), Turn.EXTEND),
        (CHOOSER, TURN, Turn.DECODE),
        (CHOOSER, replace(TURN, n_new=45), Turn.PREFILL),  # it chooses from whole prompts
        (VAULT, TURN, Turn.PREFILL),  # each question chooses its own rows
        (VAULT, replace(TURN, n_new=1), Turn.DECODE),
        (COMPACT, replace(TURN, n_new=192, n_free=44), Turn.EXTEND),
        (COMPACT, replace(TURN, n_new=193, n_free=44), Turn.PREFILL),  # beyond the context
        # that parts from what was compressed
        (COMPACT, replace(TURN, n_free=None), Turn.PREFILL),
        (COMPACT, replace(TURN, n_new=1, n_free=None), Turn.PREFILL),
        # with a window that is not there yet
        (COMPACT, replace(TURN, n_new=4, n_tokens=12, n_free=3), Turn.PREFILL),
        (COMPACT, replace(TURN, n_new=4, n_tokens=13, n_free=3), Turn.EXTEND),
        # where no token can be evaluated again
        (COMPACT, replace(TURN, **RECURRENT), Turn.DECODE),
        (COMPACT, replace(TURN, n_new=45, **RECURRENT), Turn.EXTEND),
        (COMPACT, replace(TURN, n_new=16, n_free=4, **RECURRENT), Turn.EXTEND),
        (
            COMPACT,
            replace(TURN, n_new=15, n_free=4, **RECURRENT),
            Turn.PREFILL,
        ),  # a window must vote
        (COMPACT, replace(ANSWER, n_free=1, **RECURRENT), Turn.DECODE),
        (COMPACT, replace(ANSWER, **RECURRENT), Turn.CHOOSE),
        (COMPACT, replace(ANSWER, n_tokens=512, **RECURRENT), Turn.FULL),
        # an answer
        (COMPACT, replace(ANSWER, n_free=1), Turn.DECODE),
        (VAULT, replace(ANSWER, n_new=4, n_free=4), Turn.DECODE),  # a token and its drafts
        (COMPACT, ANSWER, Turn.EVICT),
        (COMPACT, replace(ANSWER, n_new=4, n_free=3), Turn.EVICT),
        (COMPACT, replace(ANSWER, n_free=None), Turn.EVICT),
        (VAULT, ANSWER, Turn.CHOOSE),
        (CHOOSER, ANSWER, Turn.CHOOSE),
        (COMPACT, replace(ANSWER, n_tokens=16), Turn.FULL),  # nothing is before the window
        (COMPACT, replace(ANSWER, n_tokens=512), Turn.FULL),
        (VAULT, replace(ANSWER, n_tokens=512), Turn.FULL),
    ],
)
def test_a_turn(config: SnapKVConfig, at: Standing, turn: Turn) -> None:
    assert decide(config, at) is turn


def test_a_ratio_evicts_from_every_prompt_beyond_the_window() -> None:
    config = SnapKVConfig(keep_ratio=0.5, window_size=16)
    assert decide(config, replace(BEGIN, n_new=16)) is Turn.DECODE
    assert decide(config, replace(BEGIN, n_new=18)) is Turn.PREFILL


def test_a_whole_window_votes() -> None:
    assert [n_again(COMPACT, n_new) for n_new in (0, 4, 16, 200)] == [16, 12, 0, 0]
