// Queries of tokens that llama_decode() computes, as attention sees them. They are read between two parts of the graph, so
// that the graph, its plan and its memory are those without it.
#pragma once

#include "llama-context.h"

#include "ggml-backend.h"

#include <cstdint>
#include <deque>
#include <map>
#include <vector>

class llama_kv_cache;

struct llama_snapkv_queries {
    struct layer {
        uint32_t head_dim = 0;
        uint32_t n_head = 0;
        float scale = 1.0f;
        float softcap = 0.0f; // 0: none
        std::deque<std::vector<float>> tokens; // the last ones, [head_dim, n_head] each
    };
    std::map<int32_t, layer> layers; // by their number in the model
};

// while one lives, llama_decode() adds the queries of all layers that read the KV of a cache
class llama_snapkv_watch {
public:
    // whose: the sequence that has this stream of the cache for itself
    struct sequence {
        uint32_t n_max; // keeps those of the last tokens
        llama_snapkv_queries * queries;
    };

    // by stream. a callback that the context has for its nodes is still called
    llama_snapkv_watch(llama_context & ctx, const llama_kv_cache & base, std::map<uint32_t, sequence> sequences);
    ~llama_snapkv_watch();

    llama_snapkv_watch(const llama_snapkv_watch &) = delete;
    llama_snapkv_watch & operator=(const llama_snapkv_watch &) = delete;

    bool is_complete() const { return complete; } // false: whose the queries are was not to be told

private:
    static bool on_node(ggml_tensor * t, bool ask, void * data);
    void set(ggml_backend_sched_eval_callback callback, void * data);
    int32_t layer_of(const ggml_tensor * attn) const; // -1: none of these
    void read(const ggml_tensor * attn, int32_t il);

    llama_context & ctx;
    const llama_kv_cache & base;
    std::vector<int32_t> layers;
    std::map<uint32_t, sequence> sequences;
    bool complete = true;
    ggml_backend_sched_eval_callback before;
    void * before_data;
    bool before_asked = false;
};
