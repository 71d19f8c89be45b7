"""Answers in llama-server's own form, of POST /completion."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from snapkv_local.server.answer import final, progress_of
from snapkv_local.server.form import comment, sent
from snapkv_local.server.schemas import NativeRequest, is_one
from snapkv_local.server.worker import Began, Chunk, Ended, Event, Failed, Progress


class NativeForm:
    """Of one completion, or of several.

    Args:
        model: its name.
        request: that is answered.
    """

    def __init__(self, model: str, request: NativeRequest) -> None:
        self.model = model
        self.request = request
        self._texts: dict[int, list[str]] = defaultdict(list)
        self._probabilities: dict[int, list[dict[str, Any]]] = defaultdict(list)
        self._n_predicted: dict[int, int] = defaultdict(int)
        self._n_prompt = 0
        self._slot = 0

    def events(self, event: Event) -> Iterator[str]:
        """As Form has it."""
        if isinstance(event, Failed):
            yield sent(event.error.body())
        elif isinstance(event, Progress):
            if self.request.return_progress:
                yield sent({**self._piece(0, "", ()), "prompt_progress": progress_of(event)})
            else:
                yield comment(f"prefill {event.done}/{event.total}")
        elif isinstance(event, Chunk):
            piece = self._noted(event)
            if piece["content"] or piece["tokens"]:
                yield sent(piece)
        elif isinstance(event, Ended):
            yield sent(self._final(event, in_stream=True))
        else:
            self._note(event)

    def whole(self, events: Sequence[Event]) -> Any:
        """As Form has it: one answer, or a list of them."""
        found = []
        for event in events:
            if isinstance(event, Chunk):
                self._noted(event)
            elif isinstance(event, Ended):
                found.append(self._final(event, in_stream=False))
        return found[0] if len(found) == 1 and is_one(self.request.prompt) else found

    def _note(self, event: Event) -> None:
        if isinstance(event, Began):
            self._n_prompt, self._slot = event.n_prompt, event.slot

    def _noted(self, chunk: Chunk) -> dict[str, Any]:
        """The event of a stream, which the answer grows by."""
        choice = chunk.data["choices"][0]
        index = choice["index"]
        self._texts[index].append(choice["text"])
        self._n_predicted[index] += len(chunk.tokens)
        piece = self._piece(index, choice["text"], chunk.tokens)
        if self.request.timings_per_token and "timings" in chunk.data:
            piece["timings"] = chunk.data["timings"]
        entries = probabilities(chunk, self.request)
        if entries:
            self._probabilities[index] += entries
            piece["completion_probabilities"] = entries
        return piece

    def _piece(self, index: int, text: str, tokens: Sequence[int]) -> dict[str, Any]:
        return {
            "index": index,
            "content": text,
            "tokens": list(tokens),
            "stop": False,
            "id_slot": self._slot,
            "tokens_predicted": self._n_predicted[index],
            "tokens_evaluated": self._n_prompt,
        }

    def _final(self, ended: Ended, in_stream: bool) -> dict[str, Any]:
        text = "".join(self._texts[ended.index])
        answer = final(ended, self.model, text, "" if in_stream else text)
        if self.request.return_tokens and not in_stream:
            answer["tokens"] = list(ended.tokens)
        if self._probabilities[ended.index] and not in_stream:
            answer["completion_probabilities"] = self._probabilities[ended.index]
        wanted = self.request.response_fields
        return _nested(wanted, answer) if wanted else answer


def probabilities(chunk: Chunk, request: NativeRequest) -> list[dict[str, Any]]:
    """Of a chunk's tokens, in llama-server's form."""
    if request.post_sampling_probs:
        return list(chunk.data.get("drawn_from") or [])
    tokens = (chunk.data["choices"][0].get("logprobs") or {}).get("tokens", [])
    return [
        {
            "id": token.id,
            **token.entry(),
            "top_logprobs": [{"id": top.id, **top.entry()} for top in token.top],
        }
        for token in tokens
    ]


def _nested(wanted: Sequence[str], answer: dict[str, Any]) -> dict[str, Any]:
    """Some fields, a/b for b of a; those that are not there are left out."""
    found = {}
    for path in wanted:
        value: Any = answer
        for part in path.split("/"):
            if not isinstance(value, dict) or part not in value:
                break
            value = value[part]
        else:
            found[path] = value
    return found
