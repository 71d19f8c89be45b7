"""ctypes mirror of csrc/snapkv.h, where shapes and contracts are written.

Importing this module loads the library.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from typing import Any, NoReturn

# first of all: llama_cpp, below, loads the library that it has chosen
from snapkv_local.native.devices import Device, LIB_DIR, devices  # isort: skip

from llama_cpp import llama_cpp
from llama_cpp._ctypes_extensions import ctypes_function_for_shared_library

from snapkv_local import foreign, process
from snapkv_local.config import SnapKVConfig
from snapkv_local.errors import (
    LibraryError,
    NativeError,
    OutOfMemoryError,
    UnsupportedModelError,
)
from snapkv_local.native import library, voices
from snapkv_local.policies.budget import native_ratio

_bind = ctypes_function_for_shared_library(llama_cpp._lib)


def _function(name: str, argtypes: list[Any], restype: Any) -> Any:
    if not hasattr(llama_cpp._lib, name):
        raise LibraryError(
            str(LIB_DIR),
            f"holds a llama.cpp without {name}(): unpatched, or of another version of this package",
            "build ours with `make build` or `pip install .`",
        )
    return _bind(name, argtypes, restype)


SEQ_ID = 0  # llama_cpp.Llama has one sequence

RC_NO_ROOM = 1
RC_ABORTED = 2
RC_REFUSED = -1

POOLINGS = {"avg": 0, "max": 1, "trim": 2}
AGGREGATIONS = {"sum": 0, "max": 1}
HIDDEN_STATES = {"auto": 0, "device": 1, "host": 2}
OPS = {"auto": 0, "fused": 1, "ggml": 2}


class _Sized(ctypes.Structure):
    """Begins with its size, by which the library tells its version."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**{"size": ctypes.sizeof(self), **values})


# struct llama_snapkv_params
class llama_snapkv_params(_Sized):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("budget", ctypes.c_uint32),
        ("keep_ratio", ctypes.c_float),
        ("window_size", ctypes.c_uint32),
        ("observation", ctypes.c_uint32),
        ("kernel_size", ctypes.c_uint32),
        ("pooling", ctypes.c_int),
        ("aggregation", ctypes.c_int),
        ("self_weight", ctypes.c_float),
        ("n_sink", ctypes.c_uint32),
        ("min_coverage", ctypes.c_float),
        ("max_budget", ctypes.c_uint32),
        ("decode_cells", ctypes.c_uint32),
        ("layer_group", ctypes.c_uint32),
        ("hidden_state", ctypes.c_int),
        ("n_ubatch", ctypes.c_uint32),
        ("ops", ctypes.c_int),
        ("keep_scores", ctypes.c_bool),
        ("vault", ctypes.c_bool),
        ("vault_limit", ctypes.c_uint64),
    ]


# struct llama_snapkv_stats
class llama_snapkv_stats(_Sized):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("n_prompt", ctypes.c_uint32),
        ("n_kept", ctypes.c_uint32),
        ("n_cached", ctypes.c_uint32),
        ("layer_group", ctypes.c_uint32),
        ("n_ubatch", ctypes.c_uint32),
        ("n_voters", ctypes.c_uint32),
        ("n_after_voters", ctypes.c_uint32),
        ("bytes_kv", ctypes.c_uint64),
        ("bytes_kv_group", ctypes.c_uint64),
        ("bytes_hidden", ctypes.c_uint64),
        ("bytes_hidden_host", ctypes.c_uint64),
        ("bytes_weights_lent", ctypes.c_uint64),
        ("bytes_mask", ctypes.c_uint64),
        ("bytes_vault", ctypes.c_uint64),
        ("bytes_compute", ctypes.c_uint64),
        ("bytes_kv_full", ctypes.c_uint64),
        ("seconds_prefill", ctypes.c_double),
        ("seconds_score", ctypes.c_double),
        ("seconds_evict", ctypes.c_double),
        ("ratio_fused", ctypes.c_double),
        ("coverage", ctypes.c_double),
    ]


# struct llama_snapkv_seq_info
class llama_snapkv_seq_info(_Sized):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("compacted", ctypes.c_bool),
        ("n_prompt", ctypes.c_uint32),
        ("n_kept", ctypes.c_uint32),
        ("pos_exact", llama_cpp.llama_pos),
        ("pos_swa", llama_cpp.llama_pos),
        ("n_cells", ctypes.c_uint32),
        ("n_free", ctypes.c_uint32),
    ]


_ctx_p = llama_cpp.llama_context_p_ctypes
_seq_id = llama_cpp.llama_seq_id
_u32 = ctypes.c_uint32
_i32_p = ctypes.POINTER(ctypes.c_int32)
_f32_p = ctypes.POINTER(ctypes.c_float)

# typedef bool (*llama_snapkv_progress_callback)(uint64_t done, uint64_t total, void * user_data);
llama_snapkv_progress_callback = ctypes.CFUNCTYPE(
    ctypes.c_bool, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p
)


# struct llama_snapkv_tap_data
class llama_snapkv_tap_data(ctypes.Structure):
    """What the scorer of one cached layer sees, as in snapkv.h."""

    _fields_ = [
        ("ic", _u32),
        ("q", _f32_p),
        ("k", _f32_p),
        ("v", _f32_p),
        ("head_dim", _u32),
        ("head_dim_v", _u32),
        ("n_queries", _u32),
        ("n_head", _u32),
        ("n_prompt", _u32),
        ("n_head_kv", _u32),
        ("n_kept", _u32),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("ids", _i32_p),
        ("coverage", _f32_p),
    ]


# struct llama_snapkv_vault_info
class llama_snapkv_vault_info(_Sized):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("n_tokens", _u32),
        ("n_queries", _u32),
        ("n_head", _u32),
        ("n_head_kv", _u32),
        ("head_dim", _u32),
        ("head_dim_v", _u32),
        ("row_bytes_k", _u32),
        ("row_bytes_v", _u32),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
    ]


_rows_p = ctypes.POINTER(ctypes.c_void_p)


# struct llama_snapkv_vault_segment
class llama_snapkv_vault_segment(_Sized):
    """A part of the vault as it lies in memory, as in snapkv.h."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("pos0", _u32),
        ("n_tokens", _u32),
        ("tokens", _i32_p),
        ("k", _rows_p),
        ("v", _rows_p),
        ("swa", ctypes.c_void_p),
        ("swa_bytes", ctypes.c_uint64),
        ("n_swa_rows", _u32),
    ]


# typedef void (*llama_snapkv_tap_callback)(const struct llama_snapkv_tap_data * data,
#     void * user_data);
llama_snapkv_tap_callback = ctypes.CFUNCTYPE(
    None, ctypes.POINTER(llama_snapkv_tap_data), ctypes.c_void_p
)


# struct llama_snapkv_span
class llama_snapkv_span(ctypes.Structure):
    """[begin, end)"""

    _fields_ = [("begin", llama_cpp.llama_pos), ("end", llama_cpp.llama_pos)]


# struct llama_snapkv_prompt
class llama_snapkv_prompt(_Sized):
    """What a prefill is told of its tokens, as in snapkv.h. The caller keeps what it points to."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("seq_id", _seq_id),
        ("n_tokens", _u32),
        ("tokens", _i32_p),
        ("protected_spans", ctypes.POINTER(llama_snapkv_span)),
        ("n_protected", _u32),
        ("question", llama_snapkv_span),
        ("n_queries", _u32),
        ("vault_dir", ctypes.c_char_p),
        ("progress", llama_snapkv_progress_callback),
        ("progress_data", ctypes.c_void_p),
        ("tap", llama_snapkv_tap_callback),
        ("tap_data", ctypes.c_void_p),
    ]


# LLAMA_API struct llama_snapkv_params llama_snapkv_default_params(void);
@_function("llama_snapkv_default_params", [], llama_snapkv_params)
def llama_snapkv_default_params() -> llama_snapkv_params: ...


# LLAMA_API const char * llama_snapkv_last_error(void);
@_function("llama_snapkv_last_error", [], ctypes.c_char_p)
def llama_snapkv_last_error() -> bytes: ...


# LLAMA_API bool llama_snapkv_supported(struct llama_model * model,
#     struct llama_context_params cparams,
#     struct llama_snapkv_params params);
@_function(
    "llama_snapkv_supported",
    [llama_cpp.llama_model_p_ctypes, llama_cpp.llama_context_params, llama_snapkv_params],
    ctypes.c_bool,
)
def llama_snapkv_supported(model: Any, cparams: Any, params: llama_snapkv_params, /) -> bool: ...


# LLAMA_API bool llama_snapkv_has_fused_ops(const char * device);
@_function("llama_snapkv_has_fused_ops", [ctypes.c_char_p], ctypes.c_bool)
def llama_snapkv_has_fused_ops(device: bytes, /) -> bool: ...


# LLAMA_API bool llama_snapkv_proven(const char * backend);
@_function("llama_snapkv_proven", [ctypes.c_char_p], ctypes.c_bool)
def llama_snapkv_proven(backend: bytes, /) -> bool: ...


# LLAMA_API struct llama_context * llama_snapkv_init_from_model(struct llama_model * model,
#     struct llama_context_params cparams, struct llama_snapkv_params params);
@_function(
    "llama_snapkv_init_from_model",
    [llama_cpp.llama_model_p_ctypes, llama_cpp.llama_context_params, llama_snapkv_params],
    _ctx_p,
)
def llama_snapkv_init_from_model(
    model: Any, cparams: Any, params: llama_snapkv_params, /
) -> Any: ...


# LLAMA_API bool llama_snapkv_enabled(const struct llama_context * ctx);
@_function("llama_snapkv_enabled", [_ctx_p], ctypes.c_bool)
def llama_snapkv_enabled(ctx: Any, /) -> bool: ...


# LLAMA_API int32_t llama_snapkv_prefill(struct llama_context * ctx,
#     const struct llama_snapkv_prompt * prompt);
@_function("llama_snapkv_prefill", [_ctx_p, ctypes.POINTER(llama_snapkv_prompt)], ctypes.c_int32)
def llama_snapkv_prefill(ctx: Any, prompt: Any, /) -> int: ...


# LLAMA_API int32_t llama_snapkv_extend(struct llama_context * ctx, llama_pos pos0,
#     const struct llama_snapkv_prompt * prompt);
@_function(
    "llama_snapkv_extend",
    [_ctx_p, llama_cpp.llama_pos, ctypes.POINTER(llama_snapkv_prompt)],
    ctypes.c_int32,
)
def llama_snapkv_extend(ctx: Any, pos0: int, prompt: Any, /) -> int: ...


# LLAMA_API bool llama_snapkv_set_params(struct llama_context * ctx,
#     struct llama_snapkv_params params);
@_function("llama_snapkv_set_params", [_ctx_p, llama_snapkv_params], ctypes.c_bool)
def llama_snapkv_set_params(ctx: Any, params: llama_snapkv_params, /) -> bool: ...


# LLAMA_API bool llama_snapkv_get_stats(const struct llama_context * ctx,
#     struct llama_snapkv_stats * stats);
@_function("llama_snapkv_get_stats", [_ctx_p, ctypes.POINTER(llama_snapkv_stats)], ctypes.c_bool)
def llama_snapkv_get_stats(ctx: Any, stats: Any, /) -> bool: ...


# LLAMA_API bool llama_snapkv_get_seq_info(const struct llama_context * ctx, llama_seq_id seq_id,
#     struct llama_snapkv_seq_info * info);
@_function(
    "llama_snapkv_get_seq_info",
    [_ctx_p, _seq_id, ctypes.POINTER(llama_snapkv_seq_info)],
    ctypes.c_bool,
)
def llama_snapkv_get_seq_info(ctx: Any, seq_id: int, info: Any, /) -> bool: ...


# LLAMA_API uint32_t llama_snapkv_n_layer(const struct llama_context * ctx);
@_function("llama_snapkv_n_layer", [_ctx_p], _u32)
def llama_snapkv_n_layer(ctx: Any, /) -> int: ...


# LLAMA_API int32_t llama_snapkv_layer_id(const struct llama_context * ctx, uint32_t ic);
@_function("llama_snapkv_layer_id", [_ctx_p, _u32], ctypes.c_int32)
def llama_snapkv_layer_id(ctx: Any, ic: int, /) -> int: ...


# LLAMA_API uint32_t llama_snapkv_n_head_kv(const struct llama_context * ctx, uint32_t ic);
@_function("llama_snapkv_n_head_kv", [_ctx_p, _u32], _u32)
def llama_snapkv_n_head_kv(ctx: Any, ic: int, /) -> int: ...


# LLAMA_API uint64_t llama_snapkv_row_bytes(const struct llama_context * ctx);
@_function("llama_snapkv_row_bytes", [_ctx_p], ctypes.c_uint64)
def llama_snapkv_row_bytes(ctx: Any, /) -> int: ...


# LLAMA_API uint32_t llama_snapkv_kept(const struct llama_context * ctx, llama_seq_id seq_id,
#     uint32_t ic,
#     uint32_t head, int32_t * ids, uint32_t n);
@_function("llama_snapkv_kept", [_ctx_p, _seq_id, _u32, _u32, _i32_p, _u32], _u32)
def llama_snapkv_kept(ctx: Any, seq_id: int, ic: int, head: int, ids: Any, n: int, /) -> int: ...


# LLAMA_API uint32_t llama_snapkv_scores(const struct llama_context * ctx, uint32_t ic,
#     uint32_t head,
#     float * scores, uint32_t n);
@_function("llama_snapkv_scores", [_ctx_p, _u32, _u32, _f32_p, _u32], _u32)
def llama_snapkv_scores(ctx: Any, ic: int, head: int, scores: Any, n: int, /) -> int: ...


# LLAMA_API float llama_snapkv_coverage(const struct llama_context * ctx, uint32_t ic, uint32_t head);
@_function("llama_snapkv_coverage", [_ctx_p, _u32, _u32], ctypes.c_float)
def llama_snapkv_coverage(ctx: Any, ic: int, head: int, /) -> float: ...


# LLAMA_API bool llama_snapkv_get_vault_info(const struct llama_context * ctx, llama_seq_id seq_id,
#     uint32_t ic, struct llama_snapkv_vault_info * info);
@_function(
    "llama_snapkv_get_vault_info",
    [_ctx_p, _seq_id, _u32, ctypes.POINTER(llama_snapkv_vault_info)],
    ctypes.c_bool,
)
def llama_snapkv_get_vault_info(ctx: Any, seq_id: int, ic: int, info: Any, /) -> bool: ...


# LLAMA_API bool llama_snapkv_vault_read(const struct llama_context * ctx, llama_seq_id seq_id,
#     uint32_t ic, float * q, float * k, float * v);
@_function(
    "llama_snapkv_vault_read", [_ctx_p, _seq_id, _u32, _f32_p, _f32_p, _f32_p], ctypes.c_bool
)
def llama_snapkv_vault_read(ctx: Any, seq_id: int, ic: int, q: Any, k: Any, v: Any, /) -> bool: ...


# LLAMA_API int32_t llama_snapkv_select_rows(struct llama_context * ctx, llama_seq_id seq_id,
#     const uint32_t * n_kept, const int32_t * ids);
@_function(
    "llama_snapkv_select_rows",
    [_ctx_p, _seq_id, ctypes.POINTER(ctypes.c_uint32), _i32_p],
    ctypes.c_int32,
)
def llama_snapkv_select_rows(ctx: Any, seq_id: int, n_kept: Any, ids: Any, /) -> int: ...


# LLAMA_API uint32_t llama_snapkv_vault_n_segments(const struct llama_context * ctx,
#     llama_seq_id seq_id);
@_function("llama_snapkv_vault_n_segments", [_ctx_p, _seq_id], _u32)
def llama_snapkv_vault_n_segments(ctx: Any, seq_id: int, /) -> int: ...


# LLAMA_API bool llama_snapkv_vault_get_segment(const struct llama_context * ctx,
#     llama_seq_id seq_id, uint32_t i, struct llama_snapkv_vault_segment * segment);
@_function(
    "llama_snapkv_vault_get_segment",
    [_ctx_p, _seq_id, _u32, ctypes.POINTER(llama_snapkv_vault_segment)],
    ctypes.c_bool,
)
def llama_snapkv_vault_get_segment(ctx: Any, seq_id: int, i: int, segment: Any, /) -> bool: ...


# LLAMA_API bool llama_snapkv_vault_attach(struct llama_context * ctx, llama_seq_id seq_id,
#     const struct llama_snapkv_vault_segment * segment);
@_function(
    "llama_snapkv_vault_attach",
    [_ctx_p, _seq_id, ctypes.POINTER(llama_snapkv_vault_segment)],
    ctypes.c_bool,
)
def llama_snapkv_vault_attach(ctx: Any, seq_id: int, segment: Any, /) -> bool: ...


# LLAMA_API bool llama_snapkv_set_logits(struct llama_context * ctx, const float * logits);
@_function("llama_snapkv_set_logits", [_ctx_p, _f32_p], ctypes.c_bool)
def llama_snapkv_set_logits(ctx: Any, logits: Any, /) -> bool: ...


# LLAMA_API void llama_snapkv_vault_clear(struct llama_context * ctx, llama_seq_id seq_id);
@_function("llama_snapkv_vault_clear", [_ctx_p, _seq_id], None)
def llama_snapkv_vault_clear(ctx: Any, seq_id: int, /) -> None: ...


# LLAMA_API int32_t llama_snapkv_decode(struct llama_context * ctx, struct llama_batch batch);
@_function("llama_snapkv_decode", [_ctx_p, llama_cpp.llama_batch], ctypes.c_int32)
def llama_snapkv_decode(ctx: Any, batch: Any, /) -> int: ...


# LLAMA_API void llama_snapkv_exit_on_abort(int fd);
@_function("llama_snapkv_exit_on_abort", [ctypes.c_int], None)
def llama_snapkv_exit_on_abort(fd: int, /) -> None: ...


if process.is_own:
    # a descriptor of its own: llama_cpp points stderr elsewhere while a model is loaded
    llama_snapkv_exit_on_abort(os.dup(2))


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
    )


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
        if llama_snapkv_supported(model, cparams, params):
            return None
    reason = _last_error().replace("its log has the reason", said.reason or "its log is empty")
    if foreign.says_out_of_memory(reason):
        raise foreign.out_of_memory("the check of the model", reason)
    return reason


def unproven_devices() -> list[Device]:
    """GPUs of backends on which nobody has proven that results are right."""
    return [
        device
        for device in devices()
        if device.kind in ("gpu", "igpu") and not llama_snapkv_proven(device.backend.encode())
    ]


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
    reason = supported(model, cparams, params, silent)
    if reason is not None:
        raise UnsupportedModelError(name, reason, "use it with the full cache ({full})")
    if os.environ.get(library.ENV_UNPROVEN) == "1":
        for device in unproven_devices():
            warnings.warn(
                f"{device.name} ({device.description}): nobody has proven that results are right on "
                f"ggml's backend {device.backend}, and {library.ENV_UNPROVEN}=1 tries it; compare "
                "answers with those of the CPU",
                stacklevel=2,
            )


def fail(what: str, said: str = "") -> NoReturn:
    """Raise the reason of this thread's last failure in a llama_snapkv_ function.

    Args:
        what: failed: the function, or what it was to do.
        said: what llama.cpp has logged about it, or "".
    """
    reason = _last_error()
    if foreign.says_out_of_memory(reason):
        raise OutOfMemoryError(what, reason, foreign.less_memory())
    if foreign.says_out_of_memory(said):
        raise foreign.out_of_memory(what, said)
    if said and said not in reason:
        reason = f"{reason} ({said})"
    raise NativeError(what, reason, "llama.cpp's log ({verbose}) may say more")


def _last_error() -> str:
    return str(llama_snapkv_last_error(), "utf-8", errors="replace")
