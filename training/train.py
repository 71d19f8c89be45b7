"""Trains the needle model: train.py DATA OUT, with what corpus.py has written to DATA.

Stages have sequences of growing length; every batch has the same number of tokens, made anew. The last stage
brings the rate to 0. The log has the accuracy of each task and length as JSON lines.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from collections import deque
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from batches import N_ANSWERS, Batch, Batches, task_names
from model import COMPUTE, Needle, Shape, attend, load, save
from muon import Muon

BEGIN = time.time()
# seconds : share of the rate : length = weight of its batches, ...
STAGES = (
    "110:1:512=1 110:1:2048=3,512=1 130:0.8:8192=3,2048=2,512=1 130:0.6:32768=2,8192=2,2048=1,512=1"
)


def say(*words: object) -> None:
    """With seconds since the begin."""
    print(f"[{time.time() - BEGIN:6.1f}]", *words, flush=True)


class Stage:
    """How long, at which share of the rate, and which lengths, from text."""

    def __init__(self, text: str) -> None:
        seconds, share, lengths = text.split(":")
        self.seconds, self.share = float(seconds), float(share)
        weighted = [pair.split("=") for pair in lengths.split(",")]
        self.lengths = [int(length) for length, _ in weighted]
        self.weights = [float(weight) for _, weight in weighted]


class Accuracy:
    """Right answers by length and task, of the last ones."""

    def __init__(self) -> None:
        self.names = task_names()
        self._sums: dict[int, np.ndarray] = {}  # right and all, [2, n_tasks], fading

    def add(self, length: int, counts: np.ndarray) -> None:
        """Right and all of a batch, [2, n_tasks]."""
        keep = 0.95 if length < 30_000 else 0.85
        self._sums[length] = keep * self._sums.get(length, np.zeros_like(counts)) + counts

    def by_task(self, length: int) -> dict[str, float]:
        """Of tasks with answers."""
        right, all_ = self._sums[length]
        return {
            n: round(float(r / a), 4)
            for n, r, a in zip(self.names, right, all_, strict=True)
            if a > 0.5
        }

    def figures(self) -> dict[int, dict[str, float]]:
        """By length."""
        return {length: self.by_task(length) for length in sorted(self._sums)}

    def shown(self) -> str:
        """In short."""
        lines = []
        for length, figures in self.figures().items():
            values = " ".join(
                f"{n.replace(', short', '*')} {100 * v:.0f}" for n, v in figures.items()
            )
            lines.append(f"\n    {length}: {values}")
        return "".join(lines)


def choose_backend(device: str) -> None:
    """The faster of two, at 16K tokens."""
    times = {}
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
        try:
            COMPUTE.backend = backend
            some = [
                torch.randn(4, 16384, 6, 64, device=device, dtype=torch.bfloat16) for _ in range(3)
            ]
            q, k, v = (t.transpose(1, 2).requires_grad_() for t in some)
            for i in range(4):
                if i == 1:
                    torch.cuda.synchronize()
                    begin = time.time()
                attend(q, k, v).sum().backward()
            torch.cuda.synchronize()
            times[backend] = (time.time() - begin) / 3
        except RuntimeError as e:
            say("backend", backend, "fails:", str(e)[:200])
    say(
        "attention of 4 x 16K, forward and backward, s:",
        {str(k): round(v, 4) for k, v in times.items()},
    )
    COMPUTE.backend = min(times, key=times.__getitem__) if times else None


def to_device(made: Batch, device: str) -> dict[str, Tensor]:
    """Integers as int64."""
    found = {}
    for name, values in made.items():
        t = torch.from_numpy(values.astype(np.int64) if values.dtype.kind in "iu" else values)
        found[name] = t.pin_memory().to(device, non_blocking=True) if device == "cuda" else t
    return found


def counts(guess: Tensor, b: dict[str, Tensor]) -> Tensor:
    """Right answers and all by task, [2, n_tasks]; an answer is right where all tokens of its value are."""
    n_tasks = len(task_names())
    wrong = torch.zeros(N_ANSWERS, device=guess.device)
    wrong.index_add_(0, b["answer"], ((guess != b["target"]) & (b["answer"] > 0)).float())
    is_there = b["task"] >= 0
    at = b["task"].clamp(min=0)
    found = torch.zeros(2, n_tasks, device=guess.device)
    found[0].index_add_(0, at, ((wrong == 0) & is_there).float())
    found[1].index_add_(0, at, is_there.float())
    return found


class Trainer:
    """A model, what steps it, and where batches come from."""

    def __init__(self, o: argparse.Namespace) -> None:
        self.o = o
        self.stages = [Stage(text) for text in o.stages.split()]
        self.rng = random.Random(o.seed)
        # processes are forked before CUDA begins
        self.batches = Batches(Path(o.data), o.workers, o.seed)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(o.seed)
        if self.device == "cuda":
            torch.set_float32_matmul_precision("high")
            COMPUTE.dtype = torch.bfloat16
            torch._dynamo.config.cache_size_limit = 64
            choose_backend(self.device)
        self.model = (
            load(o.init, self.device) if o.init else Needle(Shape(**o.shape)).to(self.device)
        )
        n_weights = sum(p.numel() for p in self.model.parameters())
        say(f"{n_weights:,} weights, {self.device}, {COMPUTE}")
        if self.device == "cuda":
            self.model.compile()
        self.muon = Muon(self.model.hidden())
        is_fused = self.device == "cuda"
        self.adam = torch.optim.Adam(
            self.model.others(), lr=1e-3, betas=(0.9, 0.95), eps=1e-10, fused=is_fused
        )
        self.accuracy = Accuracy()
        self.step = self.n_tokens = 0
        self.good: dict[str, Tensor] = {}
        self.pending: deque[tuple[int, Tensor, Tensor]] = deque()

    def order(self, stage: Stage) -> None:
        """One more batch of a stage."""
        length = self.rng.choices(stage.lengths, stage.weights)[0]
        self.batches.ask(length, max(self.o.tokens, length))

    def rate(self, stage: Stage, left: float) -> float:
        """Of a step; `left` seconds remain of the stage."""
        warm = min(1, (self.step + 1) / (30 if self.o.init else 60))
        down = max(0.02, left / stage.seconds) if self.o.decay and stage is self.stages[-1] else 1
        return float(self.o.rate * warm * down * stage.share)

    def learn(self, length: int, made: Batch, rate: float) -> None:
        """One step."""
        b = to_device(made, self.device)
        x = self.model(b["ids"], length)
        at = x.index_select(0, b["at"])
        loss, guess = self.model.losses(at, self.model.gain, self.model.embedding, b["target"])
        total = (loss * b["weight"]).sum() / b["weight"].sum()
        total.backward()
        self.muon.step(rate)
        self.adam.param_groups[0]["lr"] = rate * 0.7
        self.adam.step()
        for p in self.model.parameters():
            p.grad = None
        with torch.no_grad():
            # without an index, for which the device would be waited for
            is_value, is_text = (b["answer"] > 0).float(), (b["weight"] < 0.1).float()
            means = [(loss * m).sum() / m.sum() for m in (is_value, is_text)]
            figures = torch.stack([total.detach(), *means])
            self.pending.append((length, counts(guess, b), figures))
        self.step += 1
        self.n_tokens += len(made["ids"])

    def read(self) -> list[float]:
        """What steps have given; the last one's losses. Weights that are lost come back."""
        last: list[float] = []
        while self.pending:
            length, found, figures = self.pending.popleft()
            last = [round(v, 4) for v in figures.tolist()]
            if not math.isfinite(last[0]):
                say("the loss is not finite: back to the last good weights, at half the rate")
                self.model.load_state_dict(self.good)
                self.o.rate /= 2
                self.muon.forget()
                self.adam.state.clear()
                self.pending.clear()
                return last
            self.accuracy.add(length, found.cpu().numpy())
        return last

    def keep(self, stage: Stage) -> None:
        """Writes a checkpoint."""
        self.good = {k: v.clone() for k, v in self.model.state_dict().items()}
        save(
            self.model,
            self.o.out,
            {"step": self.step, "tokens": self.n_tokens, "longest": stage.lengths[0]},
        )

    def run(self) -> None:
        """All stages."""
        o = self.o
        log = (o.out / "log.jsonl").open("w")
        self.keep(self.stages[0])
        for _ in range(max(o.workers + 6, 16) if self.device == "cuda" else 1):
            self.order(self.stages[0])
        # the first batches compile: time of stages begins with them
        shown = time.time()
        for i, stage in enumerate(self.stages):
            end = min(time.time() + stage.seconds, BEGIN + o.seconds)
            if i + 1 == len(self.stages):
                stage.seconds = max(1.0, BEGIN + o.seconds - time.time())
                end = BEGIN + o.seconds
            while (now := time.time()) < end:
                length, made = self.batches.get()
                self.order(stage)
                rate = self.rate(stage, end - now)
                self.learn(length, made, rate)
                if len(self.pending) < (8 if self.device == "cuda" and length < 30_000 else 1):
                    continue
                figures = self.read()
                if now - shown > o.every:
                    say(f"step {self.step}, {self.n_tokens / 1e6:.1f}M tokens, rate {rate:.5f}, {figures}",
                        self.accuracy.shown())  # fmt: skip
                    line = {"s": round(now - BEGIN, 1), "step": self.step, "tokens": self.n_tokens,
                            "stage": stage.lengths[0], "rate": round(rate, 6),
                            "loss": figures, "right": self.accuracy.figures()}  # fmt: skip
                    log.write(json.dumps(line) + "\n")
                    log.flush()
                    shown = time.time()
            self.read()
            self.keep(stage)
            say(
                f"stage of {stage.lengths[0]} ends, {self.n_tokens / 1e6:.1f}M tokens",
                self.accuracy.shown(),
            )
        self.batches.close()
        if self.device == "cuda":
            say("most GPU memory:", torch.cuda.max_memory_allocated() >> 20, "MiB")


def main() -> None:
    """Arguments, and training."""
    arg = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arg.add_argument("data")
    arg.add_argument("out", type=Path)
    arg.add_argument("--init", type=Path, help="a folder with a checkpoint to go on from")
    arg.add_argument(
        "--seconds", type=float, default=480, help="in all, from the start of the process"
    )
    arg.add_argument("--stages", default=STAGES)
    arg.add_argument("--rate", type=float, default=4e-3)
    arg.add_argument("--decay", action="store_true", help="bring the rate to 0 in the last stage")
    arg.add_argument("--tokens", type=int, default=131072, help="of a batch")
    arg.add_argument("--workers", type=int, default=14)
    arg.add_argument("--seed", type=int, default=1)
    arg.add_argument("--shape", type=json.loads, default={})
    arg.add_argument("--every", type=float, default=5, help="seconds between lines of the log")
    o = arg.parse_args()
    o.out.mkdir(parents=True, exist_ok=True)
    Trainer(o).run()
    # worker processes must not hold up the end
    os._exit(0)


if __name__ == "__main__":
    main()
