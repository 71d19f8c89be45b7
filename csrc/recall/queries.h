// Queries of tokens that llama_decode() computes, as attention sees them. They are read between two parts of the graph, so
// that the graph, its plan and its memory are those without it.
#pragma once

#include "llama-context.h"

#include "ggml-backend.h"

#include <cstdint>
#include <deque>
#include <map>
#include <vector>

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

// while one lives, llama_decode() adds the queries of these layers
class llama_snapkv_watch {
public:
    // keeps those of the last n_max tokens. a callback that the context has for its nodes is still called
    llama_snapkv_watch(llama_context & ctx, const std::vector<int32_t> & layers, uint32_t n_max, llama_snapkv_queries & queries);
    ~llama_snapkv_watch();

    llama_snapkv_watch(const llama_snapkv_watch &) = delete;
    llama_snapkv_watch & operator=(const llama_snapkv_watch &) = delete;

private:
    static bool on_node(ggml_tensor * t, bool ask, void * data);
    void set(ggml_backend_sched_eval_callback callback, void * data);
    int32_t layer_of(const ggml_tensor * attn) const; // -1: none of these
    void read(const ggml_tensor * attn, llama_snapkv_queries::layer & layer) const;

    llama_context & ctx;
    const std::vector<int32_t> & layers;
    const uint32_t n_max;
    llama_snapkv_queries & queries;
    ggml_backend_sched_eval_callback before;
    void * before_data;
    bool before_asked = false;
};
