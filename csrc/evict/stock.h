// Scoring and eviction of a layer from ggml's own ops: the reference of the fused ones, and what other devices run.
#pragma once

#include "snapkv.h"

#include "ggml-backend.h"

#include <cstdint>
#include <vector>

struct ggml_cgraph;
struct ggml_context;
struct ggml_tensor;

// what the votes of one layer are counted from
struct llama_snapkv_observation {
    ggml_tensor * q = nullptr; // F32 [head_dim, w, n_head]: the window's queries as attention saw them
    ggml_tensor * k = nullptr; // [head_dim, n, n_head_kv]: all keys of the prompt, of any cache type
    ggml_tensor * mask = nullptr; // [n, w], contiguous, 0 or -inf
    ggml_tensor * sinks = nullptr; // [n_head] logits that take part in the softmax, or null
    float scale = 1.0f;
    float softcap = 0.0f;          // 0: none
    int64_t n_parts = 1;           // >1: the layer has one KV head, and k's heads are all it: each has its own part of the query heads
};

// in so many equal parts a KV head's query heads vote, since all at once would take n*w*g*4 bytes of stock ops, and fused ones
// are defined for fewer. The mean of the parts is that of all
int64_t llama_snapkv_n_parts(int64_t n_head, int64_t n_head_kv);

struct llama_snapkv_votes {
    std::vector<ggml_tensor *> pooled; // for each KV head: [n - w], what the prefix is ranked by
    std::vector<ggml_tensor *> mass;   // for each KV head: [n], attention mass of all rows, mean over the query heads; sums to w
};

// paper, section 4: softmax over prefix and window, vote over the window's rows, pool, mean over the query heads of a KV
// head. loops over KV heads, since all at once would take n*w*n_head*4 bytes
llama_snapkv_votes llama_snapkv_graph_score(ggml_context * ctx, ggml_cgraph * gf, const llama_snapkv_observation & obs, const llama_snapkv_params & params);

// the same as fused ops (ops/snapkv-op.h): O(n*n_head_kv) instead of O(n*w*n_head) of scratch. obs.mask is not used. the last `window`
// of obs.k's rows stay, and n_kept of those before
struct llama_snapkv_fused_votes {
    ggml_tensor * stats = nullptr; // as snapkv_op_stats
    ggml_tensor * parts = nullptr; // as snapkv_op_votes, of each part of the query heads
    ggml_tensor * votes = nullptr; // as snapkv_op_votes; of parts, their mean
    ggml_tensor * ids = nullptr;   // as snapkv_op_select
};

llama_snapkv_fused_votes llama_snapkv_graph_score_fused(ggml_context * ctx, const llama_snapkv_observation & obs, const llama_snapkv_params & params, uint32_t window, uint32_t n_kept);

// can the device run them?
bool llama_snapkv_supports(ggml_backend_dev_t dev, const llama_snapkv_fused_votes & votes);

// copy rows of src to dst, both [n_embd_gqa, n_cells] of one type, as raw blocks:
//   dst[cell0 + i]          = src[ids[i, h]] for each head h, i < n_kept
//   dst[cell0 + n_kept + i] = src[row0 + i],                  i < w
// ids: I32 [n_kept, n_head_kv], null if n_kept == 0
void llama_snapkv_graph_evict(ggml_context * ctx, ggml_cgraph * gf, ggml_tensor * src, ggml_tensor * dst, ggml_tensor * ids,
        int64_t n_head_kv, int64_t cell0, int64_t n_kept, int64_t row0, int64_t w);

// true if a head's row can be copied in 4-byte units, as llama_snapkv_graph_evict() does
bool llama_snapkv_can_evict(const ggml_tensor * cache, int64_t n_head_kv);
