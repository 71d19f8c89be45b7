"""Batches of sequences, made by processes of their own."""

from __future__ import annotations

import multiprocessing
import queue
from multiprocessing.queues import Queue
from pathlib import Path

import numpy as np

from exchanges import TASKS
from sequence import Maker

# weights of losses; the first token of a value says which it is, the others follow more easily
FIRST, VALUE, OPENING, CLOSING, TEXT = 2.0, 1.0, 0.3, 0.2, 0.08
LEARNT = 0.375  # of all tokens, at most
N_ANSWERS = 8192  # of a batch, at most

Batch = dict[str, np.ndarray]


def batch(maker: Maker, length: int, n_tokens: int) -> Batch:
    """Sequences one after the other, and the positions whose next token is learnt.

    Returns:
        ids: uint16 [n_tokens].
        at: int32 [n_learnt]; target, weight and answer (its number from 1 on; 0 for what is no value) are
            like it.
        task: int32 [N_ANSWERS], of each answer: twice the task's number, and 1 where it is short; -1 where
            there is no such answer.
    """
    n_learnt = int(n_tokens * LEARNT)
    rows, at, weight, answer = [], [], [], []
    task = np.full(N_ANSWERS, -1, np.int32)
    n_answers = 1
    # values of a list are separated by commas; a number follows a space that is a token of its own
    before_first = {maker.spelling.encode(text)[0] for text in (",", " ")}
    for row in range(n_tokens // length):
        one = maker.sequence(length)
        rows.append(np.frombuffer(one.ids, np.uint16))
        seen: dict[int, int] = {}
        for part in one.learnt:
            if part.answer not in seen:
                if n_answers == N_ANSWERS or len(at) + 200 > n_learnt:
                    break
                seen[part.answer] = n_answers
                number, is_short = one.tasks[part.answer]
                task[n_answers] = 2 * number + is_short
                n_answers += 1
            for t in range(part.begin, part.end):
                at.append(row * length + t - 1)
                if part.is_value:
                    is_first = t == part.begin or one.ids[t - 1] in before_first
                    weight.append(FIRST if is_first else VALUE)
                else:
                    weight.append(CLOSING if part.is_closing else OPENING)
                answer.append(seen[part.answer] if part.is_value else 0)
    ids = np.concatenate(rows)
    rest = n_learnt - len(at)
    # other tokens of the text, but not the first of a sequence after the last of another
    places = (
        np.random.default_rng(maker.rng.randrange(1 << 30)).integers(0, n_tokens // length, rest)
        * length
    )
    places += np.random.default_rng(maker.rng.randrange(1 << 30)).integers(0, length - 1, rest)
    where = np.concatenate([np.array(at, np.int32), places.astype(np.int32)])
    return {
        "ids": ids,
        "at": where,
        "target": ids[where + 1],
        "weight": np.array(weight + [TEXT] * rest, np.float32),
        "answer": np.array(answer + [0] * rest, np.int32),
        "task": task,
    }


def task_names() -> list[str]:
    """Of what batch() numbers."""
    return [name for task in TASKS for name in (task, f"{task}, short")]


def _work(folder: Path, seed: int, requests: Queue, results: Queue) -> None:
    maker = Maker(folder, seed)
    while True:
        length, n_tokens = requests.get()
        results.put((length, batch(maker, length, n_tokens)))


class Batches:
    """Processes that make batches in advance."""

    def __init__(self, folder: Path, n_workers: int, seed: int) -> None:
        context = multiprocessing.get_context("fork")
        self._requests, self._results = context.Queue(), context.Queue()
        self._workers = [
            context.Process(
                target=_work,
                args=(folder, 1000 * seed + i, self._requests, self._results),
                daemon=True,
            )
            for i in range(n_workers)
        ]
        for worker in self._workers:
            worker.start()

    def ask(self, length: int, n_tokens: int) -> None:
        """Order one."""
        self._requests.put((length, n_tokens))

    def get(self) -> tuple[int, Batch]:
        """The next that is ready, with the length of its sequences."""
        while True:
            try:
                return self._results.get(timeout=20)
            except queue.Empty:
                if not all(worker.is_alive() for worker in self._workers):
                    raise SystemExit("a process that makes batches has ended") from None

    def close(self) -> None:
        """Ends the processes."""
        for worker in self._workers:
            worker.kill()
