"""From a model and files to a search that can run. What can be refused is refused here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from snapkv_local import profile
from snapkv_local.bench.matrix import Model
from snapkv_local.bench.runner import Machine
from snapkv_local.eval.engine import Engine
from snapkv_local.eval.prepare import opener
from snapkv_local.eval.runner import Needs
from snapkv_local.eval.tokens import open_tokens
from snapkv_local.llama.load_options import KV_TYPE, LoadOptions
from snapkv_local.plan.layers import KvType
from snapkv_local.storage.fingerprint import digest_of
from snapkv_local.tune.breadth import WINDOWS
from snapkv_local.tune.documents import N_NEXT, Pieces, cut

WINDOW = min(WINDOWS)  # rows that stay by themselves


@dataclass(frozen=True)
class Prepared:
    """What a search needs.

    Attributes:
        pieces: documents of the files.
        open_engine: loads the model.
        model: name, file and digest.
        kv_type: of the cache.
    """

    pieces: Pieces
    open_engine: Callable[[], Engine]
    model: dict[str, str]
    kv_type: KvType

    def profile(self, report: dict[str, Any]) -> profile.Profile:
        """Of a search that has found something."""
        measured = {
            "target_kl": report["target_kl"],
            "finished": report["finished"],
            "kv_type": self.kv_type,
            "length": report["length"],
            "tuning_documents": report["tuning"]["documents"],
            "tuning_cases": report["tuning"]["cases"],
            "budgets": [point["budget"] for point in report["curve"]],
            "kl": [point["kl"] for point in report["curve"]],
            "top1": [point["top1"] for point in report["curve"]],
        }
        if report["finished"]:
            found = report["held_out_scores"][0]
            measured.update(
                held_out_documents=report["held_out"]["documents"],
                held_out_cases=report["held_out"]["cases"],
                held_out_kl=found["kl"],
                held_out_reached=report["held_out_reached"],
                held_out_worst_kl=found["worst_kl"],
                held_out_top1=found["top1"],
            )
        return profile.Profile(
            settings=report["settings"],
            model=self.model,
            measured=measured,
            version=version("snapkv-local"),
            date=date.today().isoformat(),
        )


def prepare(
    path: Path,
    texts: Sequence[tuple[str, str]],
    loading: LoadOptions,
    *,
    length: int | None = None,
) -> Prepared:
    """Cut the files into cases; the model's weights are not read yet.

    Args:
        path: of the model.
        texts: name and text of each file.
        loading: with one type for K and V; the context is as long as the cases need.
        length: of the prompts, in tokens; None for 4096, or less if the files have less.

    Raises:
        PromptError: too little text, or more than the model's context.
    """
    found = Model.read(path)
    tokens = open_tokens(path, loading.chat_format)
    try:
        pieces = cut(
            tokens,
            texts,
            can_chat=tokens.can_chat,
            most=found.n_ctx_train - N_NEXT,
            length=length,
        )
    finally:
        tokens.llm.close()
    cases = [c for d in (*pieces.tuning, *pieces.held_out) for c in d.cases]
    needs = Needs(
        n_ctx=max(len(case.prompt) + case.n_after for case in cases),
        n_cells=max(len(case.prompt) for case in cases),
        decode_cells=max(case.n_after for case in cases),
        n_observed=max(WINDOWS),
    )
    n_gpu_layers = Machine.describe().n_gpu_layers(loading.gpu_layers)
    open_engine = opener(path, needs, WINDOW, replace(loading, gpu_layers=n_gpu_layers))
    kv_type = cast(KvType, loading.kv_type or KV_TYPE)
    return Prepared(
        pieces=pieces,
        open_engine=lambda: open_engine(kv_type),
        model={
            "name": found.name,
            "file": path.name,
            "digest": digest_of(path),
        },
        kv_type=kv_type,
    )
