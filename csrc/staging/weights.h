// Weights that the model keeps in host memory (partial offload), or on another GPU, are lent to the device that computes their layers, for
// the time of one layer group, so that they cross the bus once for a prompt. Left to the scheduler they would cross it once for each
// ubatch, or their layers be computed where they are.
#pragma once

#include "upstream/snapkv-alloc.h"

#include <cstdint>
#include <unordered_map>

enum class llama_snapkv_lender { host,
    gpus }; // gpus: those beside the device

class llama_snapkv_lent_weights {
public:
    llama_snapkv_lent_weights(ggml_backend_dev_t device, llama_snapkv_lender lender) :
        device(device), lender(lender) {
    }

    // copy to the device what a graph reads from elsewhere, embeddings excepted: of these a few rows are read.
    // ends earlier loans, which no graph in flight may read. throws std::runtime_error
    void lend(const ggml_cgraph * gf);

    void end() { copies.clear(); }

    // let the graph read the copies
    void substitute(ggml_cgraph * gf) const;

    size_t get_bytes() const { return bytes; }

private:
    bool is_wanted(const ggml_tensor * t) const;

    ggml_backend_dev_t device;
    llama_snapkv_lender lender;
    llama_snapkv_gctx ctx;
    ggml_backend_buffer_ptr buf;
    std::unordered_map<const ggml_tensor *, ggml_tensor *> copies;
    size_t bytes = 0; // largest loan
};
