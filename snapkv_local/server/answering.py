"""One answer of a Llama, as events."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from snapkv_local.llama.usage import Usage
from snapkv_local.server.common import CommonRequest
from snapkv_local.server.timings import Timings
from snapkv_local.server.worker import Began, Chunk, Ended, Event, Job, Progress

if TYPE_CHECKING:
    from snapkv_local.llama.draws import Draws
    from snapkv_local.llama.llama import Llama

# seconds between two reports of a prefill
_REPORT_EVERY = 0.1

Start = Callable[[], Iterator[dict[str, Any]]]


class Answering:
    """The answers to one request, one after the other.

    Args:
        llm: that answers; what it reports goes to the job until this is closed.
        request: that is answered.
        draws: how tokens are drawn; answers but the first have seeds of their own.
        job: whose client gets them.

    Attributes:
        timings: of the answers so far, together.
        n_prompt: tokens of their prompts; of those that are the same once.
        n_cached: of these, those that were there.
        n_generated: tokens of the answers.
    """

    def __init__(self, llm: Llama, request: CommonRequest, draws: Draws, job: Job) -> None:
        self.llm = llm
        self.request = request
        self.draws = draws
        self.job = job
        self.timings = Timings()
        self.n_prompt = 0
        self.n_cached = 0
        self.n_generated = 0

    def __enter__(self) -> Answering:
        return self

    def __exit__(self, *_: object) -> None:
        self.llm.prefill_progress = None
        self.llm.on_token = None
        self.llm.draws = None

    def answer(
        self, index: int, start: Start, is_new: bool = True, needs_prompt: bool = False
    ) -> Iterator[Event]:
        """One answer.

        Args:
            index: of it.
            is_new: its prompt is none that was answered just before.
            start: begins it, with chunks of one choice; its first chunk evaluates the prompt.
            needs_prompt: its text is wanted in the end.
        """
        llm, job = self.llm, self.job
        draws = dataclasses.replace(self.draws, seed=(self.draws.seed + index) % 2**32)
        llm.draws = draws
        clock = _Clock()
        reporter = _Reporter(job, llm, clock, self.request.return_progress)
        llm.prefill_progress = reporter

        def on_token() -> None:  # also tokens that give no text yet, and make no chunk
            if clock.first is None:
                clock.first = time.monotonic()
                reporter.end()
            job.check()

        llm.on_token = on_token
        n_said = 0
        began = False
        reason = None
        for chunk in start():
            if not began:
                began = True
                yield Began(llm.n_prompt, llm.n_cached, index, llm.seq_id)
            choice = {**chunk["choices"][0], "index": index}
            # a chat begins with a chunk that has no text
            says = "role" not in choice.get("delta", {})
            tokens = tuple(llm.answer_tokens[n_said:]) if says else ()
            n_said += len(tokens)
            reason = choice["finish_reason"] or reason
            data = {**chunk, "choices": [choice]}
            if draws.notes:
                data["drawn_from"] = self._drawn(tokens, llm.drawn_from[n_said - len(tokens) :])
            is_last = choice["finish_reason"] is not None
            if is_last or (self.request.timings_per_token and tokens):
                data["timings"] = self._timings(clock, is_last).json()
            yield Chunk(data, tokens)
        timings = self._timings(clock, is_last=True)
        self.timings += timings
        if is_new:
            self.n_prompt += llm.n_prompt
            self.n_cached += llm.n_cached
        self.n_generated += timings.n_predicted
        stopped_by = llm.stopped_by if llm.stopped_by in self.request.stops() else None
        prompt = llm._input_ids[: llm.n_prompt].tolist() if needs_prompt else []
        yield Ended(
            index=index,
            prompt=llm.detokenize(prompt, special=True).decode("utf-8", "ignore"),
            n_prompt=llm.n_prompt,
            n_cached=llm.n_cached,
            tokens=tuple(llm.answer_tokens),
            reason="limit" if reason == "length" else "eos" if stopped_by is None else "word",
            stopped_by=stopped_by,
            timings=timings.json(),
            settings=settings(draws, self.request),
            slot=llm.seq_id,
        )

    def _drawn(
        self, tokens: tuple[int, ...], candidates: list[list[tuple[int, float]]]
    ) -> list[dict[str, Any]]:
        """What tokens were drawn from, in llama-server's form."""
        n = getattr(self.request, "n_probs", 0)
        return [
            {**self._entry(token, dict(found).get(token, 0.0))}
            | {"top_probs": [self._entry(*each) for each in found[:n]]}
            for token, found in zip(tokens, candidates, strict=False)
        ]

    def _entry(self, token: int, probability: float) -> dict[str, Any]:
        piece = self.llm.detokenize([token], special=True)
        text = piece.decode("utf-8", "ignore")
        return {"id": token, "token": text, "bytes": list(piece), "prob": probability}

    def _timings(self, clock: _Clock, is_last: bool) -> Timings:
        llm = self.llm
        return Timings(
            llm.n_cached,
            llm.n_prompt - llm.n_cached,
            clock.prompt(),
            Usage.of(llm).n_generated if is_last else len(llm.answer_tokens),
            clock.predicted(),
            llm.n_drafted,
            llm.n_accepted,
            llm.n_looks,
            llm.n_again,
        )


def settings(draws: Draws, request: CommonRequest | None = None) -> dict[str, Any]:
    """How tokens are drawn, as llama-server has it."""
    found = dataclasses.asdict(draws)
    del found["notes"]
    bias = found.pop("logit_bias")
    n_predict = -1 if request is None or request.max_tokens is None else request.max_tokens
    return {
        **found,
        "samplers": list(draws.samplers),
        "dry_sequence_breakers": list(draws.dry_sequence_breakers),
        "adaptive_target": -1.0,
        "adaptive_decay": 0.9,
        "max_tokens": n_predict,
        "n_predict": n_predict,
        "n_keep": 0,
        "n_discard": 0,
        "ignore_eos": request is not None and request.ignore_eos,
        "stream": request is not None and request.stream,
        "stop": [] if request is None else request.stops(),
        # never is no number of JSON
        "logit_bias": [{"token": token, "bias": max(value, -1e9)} for token, value in bias.items()],
        "grammar": (request.grammar if request is not None else None) or "",
        "timings_per_token": request is not None and request.timings_per_token,
        "lora": [],
    }


class _Clock:
    """Seconds of an answer; `first` is when its first token is drawn, which ends the prompt."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.first: float | None = None

    def prompt(self) -> float:
        return (self.first or time.monotonic()) - self.started

    def predicted(self) -> float:
        return 0.0 if self.first is None else time.monotonic() - self.first


class _Reporter:
    """A prefill's progress, for its job. Raises what ends the job, which ends the prefill."""

    def __init__(self, job: Job, llm: Llama, clock: _Clock, every: bool) -> None:
        self.job = job
        self.llm = llm
        self.clock = clock
        self.every = every
        self.next = 0.0
        self.told = -1

    def end(self) -> None:
        """The prompt is evaluated; of a single token nothing was told."""
        if self.every and self.told <= 0:
            self(1, 1)

    def __call__(self, done: int, total: int) -> None:
        self.job.check()
        if self.every and self.told < 0 and done > 0:
            self._emit(0, total)
        now = time.monotonic()
        if self.every or now >= self.next:
            self.next = now + _REPORT_EVERY
            self._emit(done, total)

    def _emit(self, done: int, total: int) -> None:
        self.told = done
        llm = self.llm
        n_cached = min(llm.n_cached, llm.n_prompt)
        seconds = time.monotonic() - self.clock.started
        self.job.emit(Progress(done, total, llm.n_prompt, n_cached, seconds))
