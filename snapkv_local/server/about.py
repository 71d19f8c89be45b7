"""What the server says of its model and of its conversations, in llama-server's form."""

from __future__ import annotations

from typing import Any, Literal

from snapkv_local.server.engine import Engine
from snapkv_local.server.resting import Rest


def model(engine: Engine, created: int, ready: bool) -> dict[str, Any]:
    """An entry of GET /v1/models; of a model that is loaded with its sizes.

    Args:
        created: when the server started, in seconds since 1970.
        ready: whether the model is loaded.
    """
    entry = {
        "id": engine.model,
        "aliases": [engine.model],
        "tags": [],
        "object": "model",
        "created": created,
        "owned_by": "snapkv-local",
    }
    return {**entry, "meta": engine.sizes()} if ready else entry


def props(engine: Engine) -> dict[str, Any]:
    """GET /props."""
    params = engine.defaults.shown()
    return {
        "default_generation_settings": {"params": params, "n_ctx": engine.n_ctx},
        "total_slots": len(engine.pool.places),
        "model_alias": engine.model,
        # the name alone: nobody needs to know where files are
        "model_path": engine.file_name,
        "modalities": {"vision": False, "audio": False},
        "endpoint_slots": True,
        "endpoint_props": False,
        "endpoint_metrics": True,
        "chat_template": engine.prompting.template,
        "bos_token": _special_text(engine, "bos"),
        "eos_token": _special_text(engine, "eos"),
        "build_info": engine.fingerprint,
        "is_sleeping": False,
    }


def slots(engine: Engine, resting: bool) -> list[dict[str, Any]]:
    """GET /slots: what each sequence holds, and what the last answer left of it.

    Args:
        resting: conversations that rest, too, as slots with the id -1.
    """
    found = []
    for each in engine.pool.held():
        if isinstance(each, Rest):
            where = {
                "rests_in": "disk" if each.snapshot is None else "ram",
                "n_bytes": each.n_bytes,
            }
            number, is_processing = -1, False
        else:
            where, number, is_processing = {}, each.index, each.user is not None
        if number >= 0 or resting:
            entry = {
                "id": number,
                "n_ctx": engine.n_ctx,
                "speculative": False,
                "is_processing": is_processing,
                "n_tokens": len(each.reach.tokens),
                "conversation": each.id,
                "snapkv": each.figures,
                **where,
            }
            found.append(entry)
    return found


def _special_text(engine: Engine, name: Literal["bos", "eos"]) -> str:
    """What the token that begins or ends texts is written as; "" if there is none."""
    token = engine.llm.token_bos() if name == "bos" else engine.llm.token_eos()
    return "" if token < 0 else engine.pieces([token])[0].decode("utf-8", "replace")
