"""The functions of csrc/snapkv.h, where their contracts are written.

Importing this module loads the library.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

# first of all: llama_cpp, below, loads the library that it has chosen
from snapkv_local.native.binding import function  # isort: skip

from llama_cpp import llama_cpp

from snapkv_local import process
from snapkv_local.native.structs import (
    llama_snapkv_backend_info,
    llama_snapkv_params,
    llama_snapkv_prompt,
    llama_snapkv_proof,
    llama_snapkv_recall_event,
    llama_snapkv_seq_info,
    llama_snapkv_state,
    llama_snapkv_stats,
    llama_snapkv_vault_info,
    llama_snapkv_vault_segment,
)

RC_NO_ROOM = 1
RC_ABORTED = 2
RC_REFUSED = -1

_ctx_p = llama_cpp.llama_context_p_ctypes
_seq_id = llama_cpp.llama_seq_id
_u32 = ctypes.c_uint32
_i32_p = ctypes.POINTER(ctypes.c_int32)
_f32_p = ctypes.POINTER(ctypes.c_float)


# LLAMA_API struct llama_snapkv_params llama_snapkv_default_params(void);
@function("llama_snapkv_default_params", [], llama_snapkv_params)
def llama_snapkv_default_params() -> llama_snapkv_params: ...


# LLAMA_API const char * llama_snapkv_last_error(void);
@function("llama_snapkv_last_error", [], ctypes.c_char_p)
def llama_snapkv_last_error() -> bytes: ...


# LLAMA_API bool llama_snapkv_supported(struct llama_model * model,
#     struct llama_context_params cparams,
#     struct llama_snapkv_params params);
@function(
    "llama_snapkv_supported",
    [llama_cpp.llama_model_p_ctypes, llama_cpp.llama_context_params, llama_snapkv_params],
    ctypes.c_bool,
)
def llama_snapkv_supported(model: Any, cparams: Any, params: llama_snapkv_params, /) -> bool: ...


# LLAMA_API bool llama_snapkv_check_model(const struct llama_model * model);
@function("llama_snapkv_check_model", [llama_cpp.llama_model_p_ctypes], ctypes.c_bool)
def llama_snapkv_check_model(model: Any, /) -> bool: ...


# LLAMA_API bool llama_snapkv_has_fused_ops(const char * device);
@function("llama_snapkv_has_fused_ops", [ctypes.c_char_p], ctypes.c_bool)
def llama_snapkv_has_fused_ops(device: bytes, /) -> bool: ...


# LLAMA_API bool llama_snapkv_proven(const char * backend);
@function("llama_snapkv_proven", [ctypes.c_char_p], ctypes.c_bool)
def llama_snapkv_proven(backend: bytes, /) -> bool: ...


# LLAMA_API bool llama_snapkv_get_backend(uint32_t i, struct llama_snapkv_backend_info * info);
@function(
    "llama_snapkv_get_backend", [_u32, ctypes.POINTER(llama_snapkv_backend_info)], ctypes.c_bool
)
def llama_snapkv_get_backend(i: int, info: Any, /) -> bool: ...


# LLAMA_API const char * llama_snapkv_last_warning(void);
@function("llama_snapkv_last_warning", [], ctypes.c_char_p)
def llama_snapkv_last_warning() -> bytes: ...


# LLAMA_API struct llama_snapkv_proof llama_snapkv_default_proof(void);
@function("llama_snapkv_default_proof", [], llama_snapkv_proof)
def llama_snapkv_default_proof() -> llama_snapkv_proof: ...


# LLAMA_API bool llama_snapkv_prove(const char * device, struct llama_snapkv_proof * proof);
@function(
    "llama_snapkv_prove", [ctypes.c_char_p, ctypes.POINTER(llama_snapkv_proof)], ctypes.c_bool
)
def llama_snapkv_prove(device: bytes, proof: Any, /) -> bool: ...


# LLAMA_API uint32_t llama_snapkv_n_positions(const struct llama_model * model);
@function("llama_snapkv_n_positions", [llama_cpp.llama_model_p_ctypes], _u32)
def llama_snapkv_n_positions(model: Any, /) -> int: ...


# LLAMA_API struct llama_context * llama_snapkv_init_from_model(struct llama_model * model,
#     struct llama_context_params cparams, struct llama_snapkv_params params);
@function(
    "llama_snapkv_init_from_model",
    [llama_cpp.llama_model_p_ctypes, llama_cpp.llama_context_params, llama_snapkv_params],
    _ctx_p,
)
def llama_snapkv_init_from_model(
    model: Any, cparams: Any, params: llama_snapkv_params, /
) -> Any: ...


# LLAMA_API bool llama_snapkv_enabled(const struct llama_context * ctx);
@function("llama_snapkv_enabled", [_ctx_p], ctypes.c_bool)
def llama_snapkv_enabled(ctx: Any, /) -> bool: ...


# LLAMA_API int32_t llama_snapkv_prefill(struct llama_context * ctx,
#     const struct llama_snapkv_prompt * prompt);
@function("llama_snapkv_prefill", [_ctx_p, ctypes.POINTER(llama_snapkv_prompt)], ctypes.c_int32)
def llama_snapkv_prefill(ctx: Any, prompt: Any, /) -> int: ...


# LLAMA_API int32_t llama_snapkv_extend(struct llama_context * ctx, llama_pos pos0,
#     const struct llama_snapkv_prompt * prompt);
@function(
    "llama_snapkv_extend",
    [_ctx_p, llama_cpp.llama_pos, ctypes.POINTER(llama_snapkv_prompt)],
    ctypes.c_int32,
)
def llama_snapkv_extend(ctx: Any, pos0: int, prompt: Any, /) -> int: ...


# LLAMA_API bool llama_snapkv_set_params(struct llama_context * ctx,
#     struct llama_snapkv_params params);
@function("llama_snapkv_set_params", [_ctx_p, llama_snapkv_params], ctypes.c_bool)
def llama_snapkv_set_params(ctx: Any, params: llama_snapkv_params, /) -> bool: ...


# LLAMA_API bool llama_snapkv_get_stats(const struct llama_context * ctx,
#     struct llama_snapkv_stats * stats);
@function("llama_snapkv_get_stats", [_ctx_p, ctypes.POINTER(llama_snapkv_stats)], ctypes.c_bool)
def llama_snapkv_get_stats(ctx: Any, stats: Any, /) -> bool: ...


# LLAMA_API bool llama_snapkv_get_seq_info(const struct llama_context * ctx, llama_seq_id seq_id,
#     struct llama_snapkv_seq_info * info);
@function(
    "llama_snapkv_get_seq_info",
    [_ctx_p, _seq_id, ctypes.POINTER(llama_snapkv_seq_info)],
    ctypes.c_bool,
)
def llama_snapkv_get_seq_info(ctx: Any, seq_id: int, info: Any, /) -> bool: ...


# LLAMA_API uint32_t llama_snapkv_n_layer(const struct llama_context * ctx);
@function("llama_snapkv_n_layer", [_ctx_p], _u32)
def llama_snapkv_n_layer(ctx: Any, /) -> int: ...


# LLAMA_API int32_t llama_snapkv_layer_id(const struct llama_context * ctx, uint32_t ic);
@function("llama_snapkv_layer_id", [_ctx_p, _u32], ctypes.c_int32)
def llama_snapkv_layer_id(ctx: Any, ic: int, /) -> int: ...


# LLAMA_API uint32_t llama_snapkv_n_head_kv(const struct llama_context * ctx, uint32_t ic);
@function("llama_snapkv_n_head_kv", [_ctx_p, _u32], _u32)
def llama_snapkv_n_head_kv(ctx: Any, ic: int, /) -> int: ...


# LLAMA_API uint64_t llama_snapkv_row_bytes(const struct llama_context * ctx);
@function("llama_snapkv_row_bytes", [_ctx_p], ctypes.c_uint64)
def llama_snapkv_row_bytes(ctx: Any, /) -> int: ...


# LLAMA_API uint32_t llama_snapkv_kept(const struct llama_context * ctx, llama_seq_id seq_id,
#     uint32_t ic,
#     uint32_t head, int32_t * ids, uint32_t n);
@function("llama_snapkv_kept", [_ctx_p, _seq_id, _u32, _u32, _i32_p, _u32], _u32)
def llama_snapkv_kept(ctx: Any, seq_id: int, ic: int, head: int, ids: Any, n: int, /) -> int: ...


# LLAMA_API uint32_t llama_snapkv_scores(const struct llama_context * ctx, uint32_t ic,
#     uint32_t head,
#     float * scores, uint32_t n);
@function("llama_snapkv_scores", [_ctx_p, _u32, _u32, _f32_p, _u32], _u32)
def llama_snapkv_scores(ctx: Any, ic: int, head: int, scores: Any, n: int, /) -> int: ...


# LLAMA_API uint32_t llama_snapkv_selected(const struct llama_context * ctx, int32_t * ids, uint32_t n);
@function("llama_snapkv_selected", [_ctx_p, _i32_p, _u32], _u32)
def llama_snapkv_selected(ctx: Any, ids: Any, n: int, /) -> int: ...


# LLAMA_API uint32_t llama_snapkv_recalls(const struct llama_context * ctx,
#     llama_seq_id seq_id, struct llama_snapkv_recall_event * events, uint32_t n);
@function(
    "llama_snapkv_recalls",
    [_ctx_p, _seq_id, ctypes.POINTER(llama_snapkv_recall_event), _u32],
    _u32,
)
def llama_snapkv_recalls(ctx: Any, seq_id: int, events: Any, n: int, /) -> int: ...


# LLAMA_API float llama_snapkv_coverage(const struct llama_context * ctx, uint32_t ic, uint32_t head);
@function("llama_snapkv_coverage", [_ctx_p, _u32, _u32], ctypes.c_float)
def llama_snapkv_coverage(ctx: Any, ic: int, head: int, /) -> float: ...


# LLAMA_API bool llama_snapkv_get_vault_info(const struct llama_context * ctx, llama_seq_id seq_id,
#     uint32_t ic, struct llama_snapkv_vault_info * info);
@function(
    "llama_snapkv_get_vault_info",
    [_ctx_p, _seq_id, _u32, ctypes.POINTER(llama_snapkv_vault_info)],
    ctypes.c_bool,
)
def llama_snapkv_get_vault_info(ctx: Any, seq_id: int, ic: int, info: Any, /) -> bool: ...


# LLAMA_API bool llama_snapkv_vault_read(const struct llama_context * ctx, llama_seq_id seq_id,
#     uint32_t ic, float * q, float * k, float * v);
@function("llama_snapkv_vault_read", [_ctx_p, _seq_id, _u32, _f32_p, _f32_p, _f32_p], ctypes.c_bool)
def llama_snapkv_vault_read(ctx: Any, seq_id: int, ic: int, q: Any, k: Any, v: Any, /) -> bool: ...


# LLAMA_API int32_t llama_snapkv_select_rows(struct llama_context * ctx, llama_seq_id seq_id,
#     const uint32_t * n_kept, const int32_t * ids);
@function(
    "llama_snapkv_select_rows",
    [_ctx_p, _seq_id, ctypes.POINTER(ctypes.c_uint32), _i32_p],
    ctypes.c_int32,
)
def llama_snapkv_select_rows(ctx: Any, seq_id: int, n_kept: Any, ids: Any, /) -> int: ...


# LLAMA_API uint32_t llama_snapkv_vault_n_segments(const struct llama_context * ctx,
#     llama_seq_id seq_id);
@function("llama_snapkv_vault_n_segments", [_ctx_p, _seq_id], _u32)
def llama_snapkv_vault_n_segments(ctx: Any, seq_id: int, /) -> int: ...


# LLAMA_API bool llama_snapkv_vault_get_segment(const struct llama_context * ctx,
#     llama_seq_id seq_id, uint32_t i, struct llama_snapkv_vault_segment * segment);
@function(
    "llama_snapkv_vault_get_segment",
    [_ctx_p, _seq_id, _u32, ctypes.POINTER(llama_snapkv_vault_segment)],
    ctypes.c_bool,
)
def llama_snapkv_vault_get_segment(ctx: Any, seq_id: int, i: int, segment: Any, /) -> bool: ...


# LLAMA_API bool llama_snapkv_vault_attach(struct llama_context * ctx, llama_seq_id seq_id,
#     const struct llama_snapkv_vault_segment * segment);
@function(
    "llama_snapkv_vault_attach",
    [_ctx_p, _seq_id, ctypes.POINTER(llama_snapkv_vault_segment)],
    ctypes.c_bool,
)
def llama_snapkv_vault_attach(ctx: Any, seq_id: int, segment: Any, /) -> bool: ...


# LLAMA_API bool llama_snapkv_set_logits(struct llama_context * ctx, const float * logits);
@function("llama_snapkv_set_logits", [_ctx_p, _f32_p], ctypes.c_bool)
def llama_snapkv_set_logits(ctx: Any, logits: Any, /) -> bool: ...


# LLAMA_API void llama_snapkv_vault_clear(struct llama_context * ctx, llama_seq_id seq_id);
@function("llama_snapkv_vault_clear", [_ctx_p, _seq_id], None)
def llama_snapkv_vault_clear(ctx: Any, seq_id: int, /) -> None: ...


# LLAMA_API bool llama_snapkv_keep_state(struct llama_context * ctx, llama_seq_id seq_id,
#     bool with_logits);
@function("llama_snapkv_keep_state", [_ctx_p, _seq_id, ctypes.c_bool], ctypes.c_bool)
def llama_snapkv_keep_state(ctx: Any, seq_id: int, with_logits: bool, /) -> bool: ...


# LLAMA_API bool llama_snapkv_go_back(struct llama_context * ctx, llama_seq_id seq_id,
#     llama_pos pos);
@function("llama_snapkv_go_back", [_ctx_p, _seq_id, llama_cpp.llama_pos], ctypes.c_bool)
def llama_snapkv_go_back(ctx: Any, seq_id: int, pos: int, /) -> bool: ...


# LLAMA_API bool llama_snapkv_reserve_looks(struct llama_context * ctx);
@function("llama_snapkv_reserve_looks", [_ctx_p], ctypes.c_bool)
def llama_snapkv_reserve_looks(ctx: Any, /) -> bool: ...


# LLAMA_API bool llama_snapkv_begin_look(struct llama_context * ctx, llama_seq_id seq_id);
@function("llama_snapkv_begin_look", [_ctx_p, _seq_id], ctypes.c_bool)
def llama_snapkv_begin_look(ctx: Any, seq_id: int, /) -> bool: ...


# LLAMA_API llama_pos llama_snapkv_take_back(struct llama_context * ctx, llama_seq_id seq_id,
#     llama_pos pos);
@function("llama_snapkv_take_back", [_ctx_p, _seq_id, llama_cpp.llama_pos], llama_cpp.llama_pos)
def llama_snapkv_take_back(ctx: Any, seq_id: int, pos: int, /) -> int: ...


# LLAMA_API void llama_snapkv_keep_hidden(struct llama_context * ctx, bool keep);
@function("llama_snapkv_keep_hidden", [_ctx_p, ctypes.c_bool], None)
def llama_snapkv_keep_hidden(ctx: Any, keep: bool, /) -> None: ...


# LLAMA_API const float * llama_snapkv_hidden(struct llama_context * ctx, int32_t i);
@function("llama_snapkv_hidden", [_ctx_p, ctypes.c_int32], _f32_p)
def llama_snapkv_hidden(ctx: Any, i: int, /) -> Any: ...


# LLAMA_API uint32_t llama_snapkv_n_states(const struct llama_context * ctx,
#     llama_seq_id seq_id, bool in_vault);
@function("llama_snapkv_n_states", [_ctx_p, _seq_id, ctypes.c_bool], _u32)
def llama_snapkv_n_states(ctx: Any, seq_id: int, in_vault: bool, /) -> int: ...


# LLAMA_API bool llama_snapkv_get_state(const struct llama_context * ctx,
#     llama_seq_id seq_id, bool in_vault, uint32_t i, struct llama_snapkv_state * state);
@function(
    "llama_snapkv_get_state",
    [_ctx_p, _seq_id, ctypes.c_bool, _u32, ctypes.POINTER(llama_snapkv_state)],
    ctypes.c_bool,
)
def llama_snapkv_get_state(
    ctx: Any, seq_id: int, in_vault: bool, i: int, state: Any, /
) -> bool: ...


# LLAMA_API bool llama_snapkv_add_state(struct llama_context * ctx, llama_seq_id seq_id,
#     bool in_vault, const struct llama_snapkv_state * state);
@function(
    "llama_snapkv_add_state",
    [_ctx_p, _seq_id, ctypes.c_bool, ctypes.POINTER(llama_snapkv_state)],
    ctypes.c_bool,
)
def llama_snapkv_add_state(ctx: Any, seq_id: int, in_vault: bool, state: Any, /) -> bool: ...


# LLAMA_API int32_t llama_snapkv_decode(struct llama_context * ctx, struct llama_batch batch);
@function("llama_snapkv_decode", [_ctx_p, llama_cpp.llama_batch], ctypes.c_int32)
def llama_snapkv_decode(ctx: Any, batch: Any, /) -> int: ...


# LLAMA_API void llama_snapkv_exit_on_abort(int fd);
@function("llama_snapkv_exit_on_abort", [ctypes.c_int], None)
def llama_snapkv_exit_on_abort(fd: int, /) -> None: ...


if process.is_own:
    # a descriptor of its own: llama_cpp points stderr elsewhere while a model is loaded
    llama_snapkv_exit_on_abort(os.dup(2))
