"""Ctrl-C at any moment of a prefill: KeyboardInterrupt, an empty context, and a next prefill that works."""

import signal
import threading
import time

import numpy as np
import pytest


@pytest.fixture(scope="module")
def expected(llm, prompt):
    llm.prefill(prompt)
    return llm.kept_positions()


def assert_usable(llm, prompt, expected):
    assert (llm.n_tokens, llm.last_prefill) == (0, None)
    llm.prefill(prompt)
    np.testing.assert_array_equal(llm.kept_positions(), expected)


def test_ctrl_c_in_a_prefill(llm, prompt, expected, ctrl_c):
    seen = []

    def progress(done, total):
        seen.append(done / total)
        ctrl_c.set()

    with pytest.raises(KeyboardInterrupt):
        llm.prefill(prompt, progress)
    assert seen[-1] < 1  # it did not wait for the end
    assert_usable(llm, prompt, expected)


@pytest.fixture(scope="module")
def seconds(llm, prompt):
    """Of a prefill that nothing interrupts."""
    begun = time.monotonic()
    llm.prefill(prompt * 3)
    return time.monotonic() - begun


@pytest.mark.parametrize("share", [0.05, 0.2, 0.4, 0.6])
def test_ctrl_c_in_a_prefill_without_a_progress_function(llm, prompt, expected, seconds, share):
    for _ in range(5):
        timer = threading.Timer(share * seconds, signal.raise_signal, [signal.SIGINT])
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            llm.prefill(prompt * 3)
            timer.join()  # only if this prefill took less time than the first
        if llm.last_prefill is None:
            break
    assert_usable(llm, prompt, expected)


def test_ctrl_c_in_the_prefill_of_a_completion(llm, prompt, expected, ctrl_c):
    llm.reset()
    llm.prefill_progress = lambda _done, _total: ctrl_c.set()
    try:
        with pytest.raises(KeyboardInterrupt):
            llm.create_completion(prompt, max_tokens=4)
    finally:
        llm.prefill_progress = None
    assert_usable(llm, prompt, expected)


def test_the_handler_that_was_there_is_there_again(llm, prompt):
    before = signal.getsignal(signal.SIGINT)
    llm.prefill(prompt[:130])
    assert signal.getsignal(signal.SIGINT) is before


def test_a_prefill_on_another_thread(llm, prompt, expected):
    # signal handlers can be set on the main thread only
    failures = []

    def work():
        try:
            llm.prefill(prompt)
        except BaseException as e:
            failures.append(e)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []
    np.testing.assert_array_equal(llm.kept_positions(), expected)
