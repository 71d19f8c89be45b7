"""What drafts tokens for the model that is planned: a smaller one beside it, or its prediction heads."""

from __future__ import annotations

from dataclasses import replace

from snapkv_local.config import HEAD_CELLS
from snapkv_local.plan.layers import KvType, Part, row_bytes
from snapkv_local.plan.memory import Estimate
from snapkv_local.plan.model import PlannedModel


def beside(main: Estimate, draft: Estimate) -> Estimate:
    """The estimate of a model, with another one in its process.

    Each is prefilled while the other one waits with its weights, its cache and what generation takes. What
    the smaller one's prefill takes beyond that counts where it is more than that of the model.
    """
    process = draft.parts.get("process", Part(0))
    waits = [_waits(one) for one in (main, draft)]
    prefills = [
        Part(one.peak - waiting.main, one.peak_host - waiting.host)
        for one, waiting in zip((main, draft), waits, strict=True)
    ]
    part = Part(
        waits[1].main - process.main + max(0, prefills[1].main - prefills[0].main),
        waits[1].host - process.host + max(0, prefills[1].host - prefills[0].host),
    )
    return replace(main, parts={**main.parts, "draft": part})


def with_heads(estimate: Estimate, model: PlannedModel, n_cells: int = HEAD_CELLS) -> Estimate:
    """With the model's prediction heads, their weights and their cache of one conversation."""
    part = Part(model.bytes_heads + cache_of_heads(model, estimate.kv_type, n_cells))
    return replace(estimate, parts={**estimate.parts, "heads": part})


def cache_of_heads(model: PlannedModel, kv_type: KvType, n_cells: int = HEAD_CELLS) -> int:
    """Bytes of a conversation in the heads' cache: a head has the rows of a layer that attends."""
    return n_cells * max(row_bytes(model, il, kv_type) for il in range(len(model.layers)))


def _waits(one: Estimate) -> Part:
    lasting = one.lasting
    return Part(lasting.main + one.decode.main, lasting.host + one.decode.host)
