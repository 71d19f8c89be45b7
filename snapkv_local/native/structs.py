"""The structures of csrc/snapkv.h, where what they hold is written.

Importing this module loads the library.
"""

from __future__ import annotations

import ctypes
from typing import Any

# first of all: llama_cpp, below, loads the library that it has chosen
import snapkv_local.native.devices  # isort: skip  # noqa: F401

from llama_cpp import llama_cpp

_seq_id = llama_cpp.llama_seq_id
_u32 = ctypes.c_uint32
_i32_p = ctypes.POINTER(ctypes.c_int32)
_f32_p = ctypes.POINTER(ctypes.c_float)


class _Sized(ctypes.Structure):
    """Begins with its size, by which the library tells its version."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**{"size": ctypes.sizeof(self), **values})


# struct llama_snapkv_params
class llama_snapkv_params(_Sized):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("budget", _u32),
        ("keep_ratio", ctypes.c_float),
        ("window_size", _u32),
        ("observation", _u32),
        ("kernel_size", _u32),
        ("pooling", ctypes.c_int),
        ("aggregation", ctypes.c_int),
        ("self_weight", ctypes.c_float),
        ("n_sink", _u32),
        ("min_coverage", ctypes.c_float),
        ("max_budget", _u32),
        ("decode_cells", _u32),
        ("layer_group", _u32),
        ("hidden_state", ctypes.c_int),
        ("n_ubatch", _u32),
        ("ops", ctypes.c_int),
        ("keep_scores", ctypes.c_bool),
        ("vault", ctypes.c_bool),
        ("vault_limit", ctypes.c_uint64),
        ("prefill", ctypes.c_int),
        ("select_share", ctypes.c_float),
        ("select_min", _u32),
        ("select_depth", ctypes.c_float),
        ("select_settled", ctypes.c_float),
        ("recall_every", _u32),
        ("recall_queries", _u32),
        ("recall_rows", _u32),
        ("recall_delay", ctypes.c_int32),
        ("recall_margin", ctypes.c_float),
    ]


# struct llama_snapkv_backend_info
class llama_snapkv_backend_info(_Sized):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("name", ctypes.c_char_p),
        ("title", ctypes.c_char_p),
        ("evidence", ctypes.c_char_p),
        ("proven", ctypes.c_bool),
        ("checked", ctypes.c_bool),
        ("proven_recurrent", ctypes.c_bool),
        ("proven_latent", ctypes.c_bool),
        ("proven_wide", ctypes.c_bool),
        ("proven_sharing", ctypes.c_bool),
        ("proven_selective", ctypes.c_bool),
        ("proven_recall", ctypes.c_bool),
        ("fused", ctypes.c_bool),
        ("copies_mask", ctypes.c_bool),
    ]


# struct llama_snapkv_proof
class llama_snapkv_proof(_Sized):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("head_dim_k", _u32),
        ("head_dim_v", _u32),
        ("n_head", _u32),
        ("n_head_kv", _u32),
        ("type_k", ctypes.c_int32),
        ("type_v", ctypes.c_int32),
        ("n_tokens", _u32),
        ("n_ubatch", _u32),
        ("layer_group", _u32),
        ("max_diff", ctypes.c_double),
        ("max_logit", ctypes.c_double),
        ("max_diff_cpu", ctypes.c_double),
        ("max_diff_ops", ctypes.c_double),
        ("ratio_fused", ctypes.c_double),
        ("seconds_plain", ctypes.c_double),
        ("seconds_prefill", ctypes.c_double),
        ("decode_speed", ctypes.c_double),
    ]


# struct llama_snapkv_stats
class llama_snapkv_stats(_Sized):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("n_prompt", _u32),
        ("n_kept", _u32),
        ("n_cached", _u32),
        ("layer_group", _u32),
        ("n_ubatch", _u32),
        ("n_voters", _u32),
        ("n_after_voters", _u32),
        ("bytes_kv", ctypes.c_uint64),
        ("bytes_recurrent", ctypes.c_uint64),
        ("bytes_kv_group", ctypes.c_uint64),
        ("bytes_hidden", ctypes.c_uint64),
        ("bytes_hidden_host", ctypes.c_uint64),
        ("bytes_weights_lent", ctypes.c_uint64),
        ("bytes_mask", ctypes.c_uint64),
        ("bytes_vault", ctypes.c_uint64),
        ("bytes_state", ctypes.c_uint64),
        ("bytes_compute", ctypes.c_uint64),
        ("bytes_kv_full", ctypes.c_uint64),
        ("seconds_prefill", ctypes.c_double),
        ("seconds_score", ctypes.c_double),
        ("seconds_evict", ctypes.c_double),
        ("ratio_fused", ctypes.c_double),
        ("coverage", ctypes.c_double),
        ("n_selected", _u32),
        ("n_layer_all", _u32),
        ("settled", ctypes.c_double),
        ("layer_work", ctypes.c_double),
        ("seconds_select", ctypes.c_double),
    ]


# struct llama_snapkv_seq_info
class llama_snapkv_seq_info(_Sized):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("compacted", ctypes.c_bool),
        ("n_prompt", _u32),
        ("n_kept", _u32),
        ("pos_exact", llama_cpp.llama_pos),
        ("pos_swa", llama_cpp.llama_pos),
        ("n_cells", _u32),
        ("n_free", _u32),
    ]


# typedef bool (*llama_snapkv_progress_callback)(uint64_t done, uint64_t total, void * user_data);
llama_snapkv_progress_callback = ctypes.CFUNCTYPE(
    ctypes.c_bool, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p
)

# typedef bool (*llama_snapkv_yield_callback)(void * user_data);
llama_snapkv_yield_callback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)


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


# struct llama_snapkv_recall_event
class llama_snapkv_recall_event(ctypes.Structure):
    """A recall while answering, as in snapkv.h."""

    _fields_ = [
        ("pos", llama_cpp.llama_pos),
        ("n_rows", ctypes.c_uint64),
        ("n_bytes", ctypes.c_uint64),
        ("seconds_rank", ctypes.c_double),
        ("seconds_wait", ctypes.c_double),
        ("seconds_copy", ctypes.c_double),
        ("bytes_votes", ctypes.c_uint64),
        ("bytes_index", ctypes.c_uint64),
    ]


# struct llama_snapkv_state
class llama_snapkv_state(_Sized):
    """A state of recurrent layers, as in snapkv.h."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("pos", llama_cpp.llama_pos),
        ("data", ctypes.c_void_p),
        ("n_bytes", ctypes.c_uint64),
        ("logits", _f32_p),
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
        ("on_yield", llama_snapkv_yield_callback),
        ("yield_data", ctypes.c_void_p),
        ("tap", llama_snapkv_tap_callback),
        ("tap_data", ctypes.c_void_p),
    ]
