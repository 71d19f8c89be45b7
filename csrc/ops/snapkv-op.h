// The fused ops of SnapKV: nodes of kind GGML_OP_CUSTOM whose parameters lie in the free half of op_params. The CPU backend
// runs them through their function pointer; CUDA and Metal recognise the magic number (csrc/ops/cuda/, csrc/ops/metal/).
// evict/stock.h has the same steps from stock ops: the reference, and what other backends run.
//
// Scoring is two passes over K, and the attention matrix is never stored (paper, section 4):
//     stats = softmax statistics of the window's rows         reads K, O(window*n_head) out
//     votes = votes of the window, pooled; attention mass     reads K and stats, O(n*n_head_kv) out
//     ids   = positions kept of the prefix, and coverage      reads votes
//     evict = rows of a cache tensor, copied as raw blocks    reads ids and the full cache
#pragma once

#include "ggml.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SNAPKV_OP_MAGIC 0x564b5053u

// what the scoring ops are defined for; a backend may support fewer
#define SNAPKV_OP_MAX_HEAD_DIM 576 // of DeepSeek 2, latent and RoPE part
#define SNAPKV_OP_MAX_ROWS 256 // rows of the window that vote
#define SNAPKV_OP_MAX_GROUP 64 // query heads of a KV head, of all layers that read it

enum snapkv_op_kind {
    SNAPKV_OP_STATS = 0,
    SNAPKV_OP_VOTES = 1,
    SNAPKV_OP_SELECT = 2,
    SNAPKV_OP_EVICT = 3,
};

// in op_params, behind ggml's own ggml_custom_op_params { fun, n_tasks, userdata }
#define SNAPKV_OP_PARAMS_OFFSET 24

struct snapkv_op_params {
    uint32_t magic;
    uint32_t kind;     // enum snapkv_op_kind
    float scale;     // of q*k, before the softcap
    float softcap;     // 0: none; else logit = softcap*tanh(q*k*scale/softcap)
    int32_t kernel_size; // VOTES: of pooling, odd
    int32_t pooling;   // VOTES: enum llama_snapkv_pooling
    int32_t aggregation; // VOTES: enum llama_snapkv_aggregation
    int32_t window;    // SELECT: w; EVICT: row0
    int32_t n_sink;    // SELECT: first positions that are always kept
    float self_weight; // VOTES: share of a key's own vote that its pooled vote gets
};

// the parameters if the node is one of ours, else false
static inline bool snapkv_op_get_params(const struct ggml_tensor * node, struct snapkv_op_params * params) {
    if (node->op != GGML_OP_CUSTOM) {
        return false;
    }
    memcpy(params, (const char *) node->op_params + SNAPKV_OP_PARAMS_OFFSET, sizeof(*params));
    return params->magic == SNAPKV_OP_MAGIC;
}

// true if the scoring ops are defined for these shapes; a backend may support fewer
static inline bool snapkv_op_fits(int64_t head_dim, int64_t window, int64_t n_head, int64_t n_head_kv, enum ggml_type type_k, int64_t kernel_size) {
    const bool type_ok = type_k == GGML_TYPE_F16 || type_k == GGML_TYPE_BF16 || type_k == GGML_TYPE_F32 || type_k == GGML_TYPE_Q8_0 || type_k == GGML_TYPE_Q4_0;
    return type_ok && head_dim > 0 && head_dim % 16 == 0 && head_dim % ggml_blck_size(type_k) == 0 && head_dim <= SNAPKV_OP_MAX_HEAD_DIM && window >= 1 && window <= SNAPKV_OP_MAX_ROWS && n_head % n_head_kv == 0 &&
            n_head / n_head_kv <= SNAPKV_OP_MAX_GROUP &&
            kernel_size % 2 == 1 && kernel_size <= 127;
}

// Sources of a node are its arguments in their order, tensors only; sinks may be missing.

// Softmax statistics of the window's queries over their causal prefix: row i is prompt position n - w + i and sees keys
// 0..n - w + i. Logits are in base e: logit = scale*(q*k), softcapped.
//   q      F32 [head_dim, w, n_head], head h uses KV head h/(n_head/n_head_kv); rows contiguous, any nb[1] and nb[2]
//   k      F16, BF16, F32, Q8_0 or Q4_0 [head_dim, n, n_head_kv]; rows contiguous, any nb[1] and nb[2]
//   sinks  F32 [n_head], logits that take part in the softmax's sum and get no vote; may be NULL
//   result F32 [2, w, n_head, 1 + n_splits]: [0] row maximum (sinks included), [1] sum of exp(logit - maximum). The first
//          plane is the result; the others are partial results over n_splits ranges of keys, scratch of the backend
// head_dim is a multiple of 16 up to 576, w 1..256, n_head/n_head_kv 1..64, n >= w
struct ggml_tensor * snapkv_op_stats(struct ggml_context * ctx, struct ggml_tensor * q, struct ggml_tensor * k, struct ggml_tensor * sinks,
        float scale, float softcap);

// Votes of the window for each key, with p = exp(logit - maximum)/sum of the row, 0 where the row does not see the key:
//   per query head: vote[j] = sum (or max, if aggregation says so) of p[i, j] over the w rows i, for the prefix j < n - w
//   pooled over j with stride 1 and zeros beyond both ends of the prefix; AVG divides by the kernel size everywhere
//   (torch.avg_pool1d, count_include_pad), NOSINK is AVG with 0 for vote[0]; a kernel of 1 pools nothing. plus
//   self_weight*vote[j]; then the mean over the query heads of a KV head.
//   q, k, scale, softcap as for stats;  stats: result of snapkv_op_stats
//   result F32 [n, n_head_kv, 2]: plane 0 pooled votes, with 0 in the last w columns; plane 1 attention mass, the sum of p
//          over the rows, mean over the query heads (for all n keys, not pooled)
// kernel_size is odd and at most 127
struct ggml_tensor * snapkv_op_votes(struct ggml_context * ctx, struct ggml_tensor * q, struct ggml_tensor * k, struct ggml_tensor * stats,
        float scale, float softcap, int32_t kernel_size, int32_t pooling, int32_t aggregation, float self_weight);

// Positions of the prefix that each KV head keeps, ascending: the n_sink first, then those with the highest pooled vote.
// Equal votes: the lower position; -0 equals 0; NaN ranks last. n_kept <= n - w. The same ids on every backend and run.
//   votes  result of snapkv_op_votes
//   result I32 [n_kept + 1, n_head_kv]: ids, then the bits of a float: the share of the head's attention mass that lies on
//          the kept ids and the window, in [0, 1]; 1 if there is no mass
struct ggml_tensor * snapkv_op_select(struct ggml_context * ctx, struct ggml_tensor * votes, int32_t window, int32_t n_kept, int32_t n_sink);

// Copies rows of a cache tensor into another of the same type, for each KV head its own:
//   dst[i]          = src[ids[i, h]]   for i < n_kept
//   dst[n_kept + i] = src[row0 + i]    for i < n_rows - n_kept
//   dst    [n_embd_gqa, n_rows], a view of the rows to write; rows contiguous, a head is n_embd_gqa/n_head_kv elements of them
//   src    [n_embd_gqa, n_cells], the same type
//   ids    I32 [n_kept + 1, n_head_kv], result of snapkv_op_select
//   result a view of dst
// row0 is n - w: the first row of the window. A head's bytes are a multiple of 2
struct ggml_tensor * snapkv_op_evict(struct ggml_context * ctx, struct ggml_tensor * dst, struct ggml_tensor * src, struct ggml_tensor * ids,
        int32_t n_head_kv, int32_t row0);

// the number of key ranges that snapkv_op_stats leaves room for
static inline int64_t snapkv_op_n_splits(int64_t n) {
    const int64_t splits = (n + 1023) / 1024;
    return splits < 1 ? 1 : splits > 128 ? 128
                                         : splits;
}

#ifdef __cplusplus
}
#endif
