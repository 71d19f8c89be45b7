"""Which replica answers, and what another one is asked when the first one dies; needs no Ray."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

# with these, an answer that has begun cannot go on from its text
_BOUND = (
    "tools",
    "functions",
    "response_format",
    "grammar",
    "json_schema",
    "logprobs",
    "continue_final_message",
)


def affinity(path: str, body: dict[str, Any]) -> str:
    """What requests have in common that are best answered by the same replica.

    These are the requests about a document, and else those of a conversation: each of its requests
    begins with the messages of the first one, up to the first one of the user.

    Args:
        path: of the request.
        body: its JSON; empty where there is none.
    """
    if body.get("document"):
        return f"document {body['document']}"
    messages = body.get("messages")
    if isinstance(messages, list) and messages:
        roles = [message.get("role") if isinstance(message, dict) else None for message in messages]
        begin = messages[: roles.index("user") + 1] if "user" in roles else messages[:1]
        return json.dumps([body.get("system"), begin], sort_keys=True)
    if body.get("prompt"):
        return json.dumps(body["prompt"])[:2000]
    return path


def ranked(key: str, replicas: Iterable[str]) -> list[str]:
    """Replicas for a key, the best one first, by rendezvous hashing.

    If a replica comes or goes, only the keys for which it is the first one move.

    Args:
        key: as affinity() gives it.
        replicas: their ids.
    """

    def weight(replica: str) -> bytes:
        return hashlib.blake2b(f"{replica}\0{key}".encode(), digest_size=16).digest()

    return sorted(replicas, key=weight, reverse=True)


def heard(chunk: dict[str, Any]) -> str | None:
    """The text in a chunk of a chat's stream; None if it has what no other replica can go on with."""
    choice = chunk["choices"][0]
    delta = choice.get("delta")
    if delta is None or delta.get("reasoning_content") or delta.get("tool_calls"):
        return None
    return delta.get("content") or ""


def continued(body: dict[str, Any], said: str | None, chunks: int) -> dict[str, Any] | None:
    """The request that goes on with an answer whose beginning the client has; None if none can.

    Args:
        body: of the request that began it.
        said: the text that the client has; None if it has what is no text of a chat.
        chunks: in which it came; each was a token at least.
    """
    if said == "":
        return body
    if said is None or body.get("n", 1) != 1 or any(body.get(name) for name in _BOUND):
        return None
    messages = [*body["messages"], {"role": "assistant", "content": said}]
    limits = {
        name: max(1, body[name] - chunks)
        for name in ("max_tokens", "max_completion_tokens", "n_predict")
        if body.get(name)
    }
    return {**body, **limits, "messages": messages, "continue_final_message": True}
