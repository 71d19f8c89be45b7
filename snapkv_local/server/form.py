"""What an API makes of the events of a request."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from snapkv_local.server.worker import Event


class Form(Protocol):
    """The form of one answer. Its events come in their order, the last one Done or Failed."""

    def events(self, event: Event) -> Iterator[str]:
        """What a stream says of an event: server-sent events."""

    def whole(self, events: Sequence[Event]) -> Any:
        """The answer as one JSON value, from all events of a request that succeeded."""


def sent(data: Any, name: str | None = None) -> str:
    """A server-sent event of JSON, which is ASCII: a message may quote what is no Unicode."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(data)}\n\n"


def comment(text: str) -> str:
    """A comment, which clients pass over."""
    return f": {text}\n\n"
