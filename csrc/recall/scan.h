// How much queries attend to each row of a vault, counted on the CPU where the vault lies.
#pragma once

#include "snapkv.h"

#include "upstream/snapkv-alloc.h"
#include "vault/vault.h"

#include "ggml-alloc.h"
#include "ggml-cpp.h"

#include <cstdint>
#include <vector>

class llama_snapkv_scan {
public:
    // the vault must outlive it. params: how votes are joined and pooled
    llama_snapkv_scan(llama_context & ctx, const llama_snapkv_vault & vault, const llama_snapkv_params & params);

    // what a KV head's rows are ranked by, [n_tokens]: each query's attention over the vault's rows, and no others, joined over the
    // queries, mean over the query heads, pooled. q: [head_dim, n_queries, n_head] of the n_head query heads that read this KV head.
    // throws llama_snapkv_compute_error, std::runtime_error or std::bad_alloc
    std::vector<float> votes(uint32_t ic, int64_t head, const float * q, int64_t n_queries, int64_t n_head, float scale, float softcap);

    uint64_t bytes() const { return ggml_gallocr_get_buffer_size(allocr.get(), 0); } // of the largest graph until now

private:
    ggml_tensor * logits(ggml_context * gctx, uint32_t ic, int64_t head, ggml_tensor * q, std::vector<ggml_backend_buffer_ptr> & buffers) const;
    std::vector<float> pool(const std::vector<float> & votes) const;

    const llama_snapkv_vault & vault;
    const llama_snapkv_params & params;
    ggml_backend_t backend; // the context's for the CPU, with its threads
    ggml_gallocr_ptr allocr;
};
