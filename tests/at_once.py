"""Calls that threads make at the same time."""

import threading
from collections.abc import Callable, Sequence
from typing import Any


def at_once(calls: Sequence[Callable[[], Any]], errors: type[Exception] | None = None) -> list[Any]:
    """What each call gives, in their order, or its error if that is one of `errors`.

    Raises:
        Exception: any other error of a call, or if one does not end.
    """
    found: list[Any] = [None] * len(calls)
    failed: list[Exception] = []

    def run(i: int) -> None:
        try:
            found[i] = calls[i]()
        except Exception as e:
            if errors is None or not isinstance(e, errors):
                failed.append(e)
            found[i] = e

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
        assert not thread.is_alive(), "a call does not end"
    if failed:
        raise failed[0]
    return found
