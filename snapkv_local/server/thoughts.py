"""Thoughts of models that think before they answer: what stands between <think> and </think>."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

OPEN, CLOSE = "<think>", "</think>"


def with_thoughts(
    chunks: Iterator[dict[str, Any]], begun: Callable[[], bool]
) -> Iterator[dict[str, Any]]:
    """Chunks of a chat stream, where thoughts are reasoning_content.

    Args:
        chunks: as llama_cpp gives them.
        begun: whether the prompt has opened a thought already; asked once the prompt is evaluated.
    """
    splitter = _Splitter()
    is_first = True
    for chunk in chunks:
        if is_first:
            is_first = False
            if begun():
                splitter.begin()
        choice = chunk["choices"][0]
        delta = choice["delta"]
        is_last = choice["finish_reason"] is not None
        parts = splitter.add(delta.get("content") or "", is_last)
        if not parts or "role" in delta:
            if is_last or "role" in delta or choice.get("logprobs"):
                kept = {k: v for k, v in delta.items() if k != "content" or "role" in delta}
                yield _with(chunk, kept, choice.get("logprobs"), choice["finish_reason"])
            continue
        for i, (name, text) in enumerate(parts):
            logprobs = choice.get("logprobs") if i == 0 else None
            yield _with(chunk, {name: text}, logprobs, None)
        if is_last:
            yield _with(chunk, {}, None, choice["finish_reason"])


class _Splitter:
    """Text in, (field, text) out; what may be the beginning of a tag is held back."""

    def __init__(self) -> None:
        self.held = ""
        self.is_thinking = False
        self.is_over = False  # the answer's own text has begun
        self.trims = True  # white space around thoughts is nobody's

    def begin(self) -> None:
        """The prompt has opened a thought."""
        self.is_thinking = True

    def add(self, text: str, is_last: bool) -> list[tuple[str, str]]:
        """What is settled by a piece of text."""
        self.held += text
        found: list[tuple[str, str]] = []
        while True:
            if self.trims:
                self.held = self.held.lstrip() if self.is_thinking or self.is_over else self.held
            if self.is_over:
                break
            tag = CLOSE if self.is_thinking else OPEN
            if self.is_thinking:
                at = self.held.find(tag)
                if at >= 0:
                    self._say(found, self.held[:at].rstrip())
                    self.held = self.held[at + len(tag) :]
                    self.is_thinking, self.is_over, self.trims = False, True, True
                    continue
                n = 0 if is_last else _n_begun(self.held, tag)
                # white space before the tag is none of the thought
                body = self.held[: len(self.held) - n]
                said = body if is_last else body.rstrip()
                self._say(found, said)
                self.held = self.held[len(said) :]
                return found
            # a thought comes first, or not at all
            start = self.held.lstrip()
            if start.startswith(tag):
                self.held = start[len(tag) :]
                self.is_thinking = True
                continue
            if tag.startswith(start) and not is_last:
                return found
            self.is_over, self.trims = True, False
        self._say(found, self.held)
        self.held = ""
        return found

    def _say(self, found: list[tuple[str, str]], text: str) -> None:
        if text:
            self.trims = False
            found.append(("reasoning_content" if self.is_thinking else "content", text))


def _n_begun(text: str, tag: str) -> int:
    """Last characters that may be the beginning of a tag."""
    return next((n for n in range(len(tag) - 1, 0, -1) if text.endswith(tag[:n])), 0)


def _with(
    chunk: dict[str, Any], delta: dict[str, Any], logprobs: Any, finish: str | None
) -> dict[str, Any]:
    choice = {**chunk["choices"][0], "delta": delta, "logprobs": logprobs, "finish_reason": finish}
    return {**chunk, "choices": [choice]}
