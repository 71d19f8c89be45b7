"""A survey as one HTML file, which needs no other and makes no request."""

from __future__ import annotations

import base64
import json

import numpy as np

from snapkv_local.inspection.kept import Survey
from snapkv_local.report.html import load_template


def page(
    survey: Survey,
    title: str,
    question: str,
    model: str,
    layer: int | None = None,
    n_spans: int = 20,
) -> str:
    """The page.

    Args:
        title: of the document.
        question: that was asked about it.
        model: its name.
        layer: what is shown first; None for all layers. The page can change it.
        n_spans: how many spans to list.

    Raises:
        ConfigError: jinja2 is missing, or the layer has no cache that was compressed.
    """
    prompt = survey.prompt
    n_prompt = len(prompt.tokens)
    shares = survey.shares(layer)
    texts = [prompt.text[a:b] for a, b in zip(prompt.starts, prompt.ends(), strict=True)]
    # one byte a layer and token where that is enough, in the order of layers
    wide = survey.n_head_kv > 255
    counts = survey.counts.astype("<u2" if wide else "u1").tobytes()
    return load_template("snapkv_local.inspection").render(
        title=title,
        question=question,
        model=model,
        survey=survey,
        stats=survey.stats,
        layer=layer,
        n_window=survey.window_size,
        first_of_window=n_prompt - survey.window_size,
        tokens=[(text, round(float(share), 3)) for text, share in zip(texts, shares, strict=True)],
        bars=[
            {"layer": number, "mean": float(heads.mean()), "least": float(heads.min())}
            for number, heads in zip(survey.layers, survey.coverage, strict=True)
        ],
        spans=survey.spans(layer)[:n_spans],
        unkept=float(np.mean(shares[: n_prompt - survey.window_size] == 0)),
        data={
            "counts": base64.b64encode(counts).decode("ascii"),
            "wide": wide,
            "layers": json.dumps(survey.layers),
        },
    )
