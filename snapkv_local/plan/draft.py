"""A second, smaller model beside the one that is planned, which drafts tokens for it."""

from __future__ import annotations

from dataclasses import replace

from snapkv_local.plan.layers import Part
from snapkv_local.plan.memory import Estimate


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


def _waits(one: Estimate) -> Part:
    lasting = one.lasting
    return Part(lasting.main + one.decode.main, lasting.host + one.decode.host)
