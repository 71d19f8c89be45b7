// Scoring and eviction of one layer group, by fused ops (ops/snapkv-op.h) where the device has them, else by stock ops
// (evict/stock.h).
#pragma once

#include "evict/stock.h"
#include "graph/cut.h"
#include "graph/runner.h"
#include "staging/place.h"
#include "staging/staging.h"
#include "state/context.h"

#include "llama-kv-cache.h"

#include <unordered_map>
#include <vector>

// a cached layer, as its attention node shows it
struct llama_snapkv_layer {
    uint32_t ic = 0; // cached layer
    int32_t il = 0; // layer of the model
    int64_t head_dim = 0;
    int64_t n_head = 0;
    int64_t n_head_kv = 0;
    float scale = 1.0f;
    float softcap = 0.0f;
    ggml_tensor * sinks = nullptr;
    uint32_t slot = 0; // of staging.queries
};

// rows of the window that vote
struct llama_snapkv_voters {
    uint32_t n;
    uint32_t n_after; // rows after them
};

class llama_snapkv_compressor {
public:
    llama_snapkv_compressor(llama_context & ctx, llama_snapkv & sk, llama_snapkv_runner & runner, const llama_snapkv_place & place,
            const llama_snapkv_staging & staging, uint32_t n_prompt, uint32_t n_kept, uint32_t n_least, llama_pos shift, llama_snapkv_record_ptr before);

    // votes of the group's layers; appends the kept positions to record. throws std::runtime_error
    void score(const std::vector<llama_snapkv_layer> & layers, llama_snapkv_record & record);

    // copies the rows that record names last into target, cells of the compact cache
    void evict(const std::vector<llama_snapkv_layer> & layers, const llama_snapkv_record & record, llama_kv_cache & base, const llama_kv_cache::slot_info & target);

    // [head_dim, n_rows, n_head] rows of the saved queries of a layer; row 0 is position n_prompt - n_queries
    ggml_tensor * queries(ggml_context * gctx, const llama_snapkv_layer & layer, int64_t row0, int64_t n_rows) const;

    // the fewest prefix rows, from n_least on, that hold the share of the attention mass which the parameters ask for; n_kept if
    // even these do not
    uint32_t rows_for_coverage() const;
    // fewer prefix rows than n_kept: packs those of the compact cache anew, and corrects the record
    void shrink(uint32_t n_rows, llama_snapkv_record & record, llama_kv_cache & base, const llama_kv_cache::slot_info & target);

    // of all layers so far
    double get_coverage() const;
    double get_ratio_fused() const { return (double) n_fused / n_scored; }

private:
    // results of a layer's votes
    struct ballot {
        bool fused = false;
        llama_snapkv_votes stock;
        llama_snapkv_fused_votes votes;
    };

    // rows of a KV head by rank, and the share of the attention mass on the first 0, 1, ... of them and the window
    struct ranking {
        std::vector<int32_t> order;
        std::vector<float> held;
    };

    // must the host rank the rows?
    bool ranks() const { return !sk.protected_spans.empty() || n_least < n_kept; }
    ranking rank(const llama_snapkv_layer & layer, int64_t head, const std::vector<float> & pooled, const std::vector<float> & mass) const;

    bool use_fused(const llama_snapkv_layer & layer) const;
    bool can_fuse(const llama_snapkv_layer & layer) const;
    llama_snapkv_observation observe(ggml_context * gctx, const llama_snapkv_layer & layer) const; // its mask is not set
    ggml_tensor * keys(ggml_context * gctx, const llama_snapkv_layer & layer, int64_t n_rows) const; // the first
    ballot vote(ggml_context * gctx, ggml_cgraph * gf, const llama_snapkv_layer & layer, ggml_tensor *& mask) const;
    ggml_tensor * values(ggml_context * gctx, const llama_snapkv_layer & layer) const;
    ggml_tensor * in_f32(ggml_context * gctx, ggml_cgraph * gf, ggml_tensor * rows) const;
    std::vector<int32_t> count(const llama_snapkv_layer & layer, const ballot & ballot);
    void tap(const llama_snapkv_layer & layer, ggml_tensor * k, ggml_tensor * v, llama_snapkv_record::layer & kept) const;
    void copy_rows(ggml_context * gctx, ggml_cgraph * gf, const llama_snapkv_layer & layer, ggml_tensor * src, ggml_tensor * dst, ggml_tensor * ids, int64_t cell0) const;

    llama_context & ctx;
    llama_snapkv & sk;
    llama_snapkv_runner & runner;
    const llama_snapkv_place & place;
    const llama_snapkv_staging & staging;
    const uint32_t n; // rows: prompt tokens, or cells that go before and tokens
    const uint32_t w; // window
    const llama_snapkv_voters voters;
    const uint32_t n_seen; // rows up to the last one that votes
    const uint32_t n_kept; // prefix rows that are copied
    const uint32_t n_least; // fewer may be enough in the end
    const llama_pos shift; // position of a token - its row
    const llama_snapkv_record_ptr before; // of the cells that go before, or null

    std::vector<std::vector<ranking>> rankings; // by cached layer and KV head, if n_least < n_kept

    mutable std::unordered_map<uint32_t, bool> fused; // by cached layer
    uint32_t n_scored = 0;
    uint32_t n_fused = 0;
};
