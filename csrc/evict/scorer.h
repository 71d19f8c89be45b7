// The votes of a group's layers, counted on the device: by fused ops (ops/snapkv-op.h) where it has them, else by stock ops
// (evict/stock.h).
#pragma once

#include "evict/stock.h"
#include "graph/runner.h"
#include "staging/layer.h"
#include "staging/place.h"
#include "staging/staging.h"
#include "state/context.h"
#include "state/task.h"

#include <unordered_map>
#include <vector>

// rows of the window that vote
struct llama_snapkv_voters {
    uint32_t n;
    uint32_t n_after; // rows after them

    static llama_snapkv_voters of(const llama_snapkv_params & params, const llama_snapkv_task & task);
};

// results of a layer's votes, on the device
struct llama_snapkv_ballot {
    bool fused = false;
    llama_snapkv_votes stock;
    llama_snapkv_fused_votes votes;
    ggml_tensor * k = nullptr; // all rows in f32; null if they are not wanted
    ggml_tensor * v = nullptr;

    // of a KV head: what the prefix is ranked by [n_prefix], and the attention mass [n_seen]. of fused votes only if they are wanted
    void read_votes(int64_t head, std::vector<float> & pooled, std::vector<float> & mass) const;
    // of a KV head, fused votes only: the rows that the device has chosen, and their coverage
    std::vector<int32_t> read_chosen(int64_t head, uint32_t n_kept, float & coverage) const;
};

// until the runner's next graph
struct llama_snapkv_ballots {
    std::vector<llama_snapkv_ballot> of_layers;
    llama_snapkv_gctx gctx; // their tensors
};

class llama_snapkv_scorer {
public:
    llama_snapkv_scorer(llama_context & ctx, const llama_snapkv_params & params, llama_snapkv_runner & runner, const llama_snapkv_place & place,
            const llama_snapkv_staging & staging, const llama_snapkv_task & task);

    // the ballots of layers, one for each. with_votes: read_votes() is for those of fused ops, too; with_kv: K and V are wanted.
    // throws std::runtime_error
    llama_snapkv_ballots score(const std::vector<llama_snapkv_layer> & layers, bool with_votes, bool with_kv);

    // do the fused ops run this layer on its device?
    bool is_fused(const llama_snapkv_layer & layer) const;

    const llama_snapkv_voters voters;
    uint32_t n_seen() const { return task.n_rows() - voters.n_after; } // rows up to the last one that votes

private:
    bool can_fuse(const llama_snapkv_layer & layer) const;
    llama_snapkv_fused_votes build_fused(ggml_context * gctx, const llama_snapkv_observation & obs) const;
    llama_snapkv_observation observe(ggml_context * gctx, const llama_snapkv_layer & layer) const; // its mask is not set
    llama_snapkv_ballot vote(ggml_context * gctx, ggml_cgraph * gf, const llama_snapkv_layer & layer, bool with_votes, ggml_tensor *& mask) const;

    llama_context & ctx;
    const llama_snapkv_params & params;
    llama_snapkv_runner & runner;
    const llama_snapkv_place & place;
    const llama_snapkv_staging & staging;
    const llama_snapkv_task & task;

    mutable std::unordered_map<uint32_t, bool> fused; // by cached layer
};
