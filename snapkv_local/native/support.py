"""Settings and models, as the engine sees them: native parameters, and what it can run."""

from __future__ import annotations

import warnings
from typing import Any

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local.native import api  # isort: skip

from llama_cpp import llama_cpp

from snapkv_local import foreign
from snapkv_local.config import SnapKVConfig
from snapkv_local.errors import UnsupportedModelError
from snapkv_local.native import failure, voices
from snapkv_local.native.devices import Device, devices
from snapkv_local.native.structs import llama_snapkv_params
from snapkv_local.policies.budget import native_ratio

POOLINGS = {"avg": 0, "max": 1, "nosink": 2}
AGGREGATIONS = {"sum": 0, "max": 1}
HIDDEN_STATES = {"auto": 0, "device": 1, "host": 2}
OPS = {"auto": 0, "fused": 1, "ggml": 2}
PREFILLS = {"exact": 0, "selective": 1}
_RECALL_EVERY_AUTO = 2**32 - 1


def ggml_type(kv_type: str) -> int:
    """ggml's number of a type of the KV cache, such as "q8_0"."""
    return int(getattr(llama_cpp, f"GGML_TYPE_{kv_type.upper()}"))


def ggml_type_name(number: int) -> str:
    """The other way round."""
    prefix = "GGML_TYPE_"
    names = {getattr(llama_cpp, n): n for n in dir(llama_cpp) if n.startswith(prefix)}
    return names[number].removeprefix(prefix).lower()


def make_params(config: SnapKVConfig, keep_scores: bool = False) -> llama_snapkv_params:
    """The native form of the settings."""
    return llama_snapkv_params(
        budget=config.budget or 0,
        keep_ratio=native_ratio(config.keep_ratio or 0.0),
        window_size=config.window_size,
        observation=config.observation if isinstance(config.observation, int) else 0,
        kernel_size=config.kernel_size,
        pooling=POOLINGS[config.pooling],
        aggregation=AGGREGATIONS[config.aggregation],
        self_weight=config.self_weight,
        n_sink=config.n_sink,
        min_coverage=config.min_coverage or 0.0,
        max_budget=config.most_rows() if config.min_coverage else 0,
        decode_cells=config.decode_cells,
        layer_group=0 if config.layer_group == "auto" else config.layer_group,
        hidden_state=HIDDEN_STATES[config.hidden_state],
        n_ubatch=0 if config.n_ubatch == "auto" else config.n_ubatch,
        ops=OPS[config.ops],
        keep_scores=keep_scores,
        vault=config.vault != "off",
        vault_limit=config.vault_limit or 0,
        prefill=PREFILLS[config.prefill],
        select_share=config.select_share,
        select_min=config.select_min,
        select_depth=config.select_depth,
        select_settled=config.select_settled,
        recall_every=_recall_every(config),
        recall_queries=config.recall_queries,
        recall_rows=config.recall_rows,
        recall_delay=-1 if config.recall_delay == "auto" else config.recall_delay,
        recall_margin=config.recall_margin,
    )


def _recall_every(config: SnapKVConfig) -> int:
    if not config.recall:
        return 0
    return _RECALL_EVERY_AUTO if config.recall_every == "auto" else config.recall_every


def supported(
    model: Any, cparams: Any, params: llama_snapkv_params, silent: bool = True
) -> str | None:
    """None if a context for the model can be made, else the reason why not.

    Args:
        silent: llama.cpp's log of the attempt is for the reason only.

    Raises:
        OutOfMemoryError: there is too little memory to find out.
    """
    with voices.heard(silent) as said:
        if api.llama_snapkv_supported(model, cparams, params):
            return None
    reason = failure.last_error().replace(
        "its log has the reason", said.reason or "its log is empty"
    )
    if foreign.says_out_of_memory(reason):
        raise foreign.out_of_memory("the check of the model", reason)
    return reason


def n_positions(model: Any) -> int | None:
    """Positions that a model has learned embeddings of; None for one that knows no such bound."""
    return api.llama_snapkv_n_positions(model) or None


def unproven_devices() -> list[Device]:
    """GPUs of backends on which nobody has proven that results are right."""
    return [
        device
        for device in devices()
        if device.kind in ("gpu", "igpu") and not api.llama_snapkv_proven(device.backend.encode())
    ]


def check_layers(name: str, model: Any) -> None:
    """Refuse layers that a file describes and llama.cpp would end the process for.

    Args:
        name: of the model, for the error.

    Raises:
        UnsupportedModelError: with the reason.
    """
    if not api.llama_snapkv_check_model(model):
        raise UnsupportedModelError(
            name,
            f"{failure.last_error()}, and llama.cpp would end the process",
            "take another file of this model",
        )


def check_supported(
    name: str, model: Any, cparams: Any, params: llama_snapkv_params, silent: bool = True
) -> None:
    """Raise the reason unless a context for the model can be made.

    Args:
        name: of the model, for the error.
        silent: as in supported().

    Raises:
        UnsupportedModelError: the model, or what is asked for, is refused.
        OutOfMemoryError: there is too little memory to find out.
    """
    check_layers(name, model)
    reason = supported(model, cparams, params, silent)
    if reason is not None:
        raise UnsupportedModelError(name, reason, "use it with the full cache ({full})")
    warning = failure.last_warning()
    if warning:
        warnings.warn(warning, stacklevel=2)
