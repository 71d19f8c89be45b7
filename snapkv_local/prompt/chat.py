"""A chat as it was asked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Chat:
    """What create_chat_completion() was asked: messages, and what else the template may show."""

    messages: Sequence[Any]
    options: dict[str, Any]

    @classmethod
    def of(cls, function: Callable[..., Any], args: Any, kwargs: Any) -> Chat | None:
        """From the arguments of create_chat_completion(); None if they do not fit it."""
        try:
            given = inspect.signature(function).bind(*args, **kwargs).arguments
        except TypeError:
            return None  # which the function itself will say
        return cls(given.pop("messages"), given)

    def text(self, i: int) -> str:
        """A message's text, its parts one below the other."""
        content = self.messages[i].get("content") or ""
        if isinstance(content, str):
            return content.strip()
        return "\n".join(part.get("text") or "" for part in content).strip()

    def n_system(self) -> int:
        """System messages at the front."""
        roles = [message["role"] for message in self.messages]
        return next((i for i, role in enumerate(roles) if role != "system"), len(roles))

    def last_user(self) -> int | None:
        """The last message of the user."""
        users = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        return users[-1] if users else None
