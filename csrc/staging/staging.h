// What a layer-group prefill needs beside the context: the staging cache, the hidden state between groups, the mask.
#pragma once

#include "staging/hidden.h"
#include "staging/layer.h"
#include "staging/place.h"
#include "staging/plan.h"
#include "state/context.h"
#include "state/task.h"
#include "upstream/snapkv-alloc.h"

#include "llama-kv-cache.h"
#include "llama-model.h"

#include <memory>
#include <vector>

struct llama_snapkv_staging {
    std::unique_ptr<llama_kv_cache> kv; // full KV of one group, all cached layers mapped to its slots
    llama_snapkv_gctx ctx;
    std::vector<ggml_backend_buffer_ptr> bufs;

    llama_snapkv_hidden_buffer hidden; // not allocated if there is one group only
    // F32 [head_dim*n_queries*n_head at most, G]: queries of the last tokens, of the group's layers. for each cached layer the one on the
    // layer's own device: a copy to another would draw the nodes behind it there
    std::vector<ggml_tensor *> queries;
    uint32_t n_queries = 0;

    // F16 [n_max + pad, rows], mask[j, i] = j - n_max <= i ? 0 : -inf: the causal mask of rows at position p0 is its view
    // at column n_max - p0 + r and row r. r makes the column a multiple of MASK_ALIGNMENT: kernels of GPUs read 16 bytes at once.
    // for each cached layer the one on the layer's own device
    static constexpr int64_t MASK_ALIGNMENT = 8;
    std::vector<ggml_tensor *> masks;
    int64_t n_max = 0;

    // [n_cols, n_rows] of masks[ic] for the tokens p0, p0 + 1, ...; rows keep the stride of the whole
    ggml_tensor * mask_view(ggml_context * ctx, uint32_t ic, int64_t n_cols, int64_t n_rows, int64_t p0) const;

    // what a layer has here, as views:
    ggml_tensor * queries_of(ggml_context * ctx, const llama_snapkv_layer & layer, int64_t row0, int64_t n_rows) const; // [head_dim, n_rows, n_head]; row 0 is position n_prompt - n_queries
    // of one of the layers that read its KV, n_heads of each KV head's queries, from head0 on: [head_dim, n_rows, n_heads, n_head_kv]
    ggml_tensor * queries_of_reader(ggml_context * ctx, const llama_snapkv_layer & layer, int64_t head0, int64_t n_heads, int64_t row0, int64_t n_rows) const;
    ggml_tensor * keys_of(ggml_context * ctx, const llama_snapkv_layer & layer, int64_t n_rows) const;                  // [head_dim, n_rows, n_head_kv], the first
    ggml_tensor * values_of(ggml_context * ctx, const llama_snapkv_layer & layer, int64_t n_rows) const;                // [head_dim_v, n_rows, n_head_kv]

    size_t bytes_kv = 0, bytes_mask = 0, bytes_queries = 0;
};

// n_new: rows that are computed; the others come from cells or from the vault. starts_aligned: chunks begin at multiples of
// MASK_ALIGNMENT. throws std::runtime_error or std::bad_alloc
// with nothing left behind
llama_snapkv_staging llama_snapkv_make_staging(llama_context & ctx, const llama_snapkv_memory & mem, const llama_snapkv_params & params,
        const llama_snapkv_groups & groups, const llama_snapkv_place & place, const llama_snapkv_plan & plan, const llama_snapkv_task & task, uint32_t n_new, bool starts_aligned);

// bytes of K and V rows for n cells, of all cached layers
size_t llama_snapkv_full_bytes(const llama_kv_cache & base, uint32_t n_cells);
