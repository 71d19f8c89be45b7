// The model's graph, cut to a group of layers.
#pragma once

#include "llama-graph.h"

#include <cstdint>
#include <functional>
#include <vector>

struct ggml_cgraph;
struct ggml_context;
struct ggml_tensor;

// the whole model's graph for one ubatch, before it is cut
struct llama_snapkv_graph {
    ggml_cgraph * gf = nullptr;
    std::vector<ggml_tensor *> l_out; // output of each layer, null where the model names none
};

llama_snapkv_graph llama_snapkv_graph_build(const llama_model & model, llm_graph_params params, uint32_t n_layer);

// elements of a token's output of a layer; Gemma 3n's is several hidden states, [n_embd, n_tokens, n_altup]
uint32_t llama_snapkv_hidden_size(const llama_model & model);

// the flash-attention node of layer il, null if there is none or more than one
ggml_tensor * llama_snapkv_graph_attn(const llm_graph_result & res, int32_t il);

struct llama_snapkv_cut_params {
    int32_t il0 = 0;              // first layer
    int32_t il1 = 0;              // one past the last layer
    ggml_tensor * hidden_in = nullptr; // [hidden size, n_tokens] view, null for the first group
    ggml_tensor * hidden_out = nullptr; // [hidden size, n_tokens] view, null for the last group
    ggml_tensor * mask_input = nullptr; // input of the graph that is not wanted, since its users get another mask
    bool store_only = false;      // only K and V of these layers are wanted, and their recurrent state
    std::function<void(const ggml_tensor *)> behind; // called behind each node of the cut: what it adds to dst stands there
    bool flat = false;            // all layers of the cut read hidden_in, as if those before them changed nothing
};

// nodes of layers [il0, il1) in their order, after all inputs of the whole graph, so that llm_graph_result::set_inputs()
// finds each of them allocated. returns the nodes from outside of the cut that had to come along although they attend, or read or
// write K, V or a recurrent state: none, or the model's layers cannot be run one group after the other
uint32_t llama_snapkv_graph_cut(ggml_context * ctx, ggml_cgraph * dst, llama_snapkv_graph & graph, const llama_snapkv_cut_params & params);

// the allocator's plan for one graph is valid for another one of equal topology, if that is not larger in any tensor that a node reads;
// inputs that none reads, such as a mask of layers outside of the cut, belong to the topology with their sizes
uint64_t llama_snapkv_graph_topology(const ggml_cgraph * gf);
