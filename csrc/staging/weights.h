// Partial offload: weights that the model keeps in host memory are lent to the device for the time of one layer group, so
// that they cross the bus once for a prompt. Left to the scheduler they would cross it once for each ubatch.
#pragma once

#include "upstream/snapkv-alloc.h"

#include <cstdint>
#include <unordered_map>

class llama_snapkv_lent_weights {
public:
    explicit llama_snapkv_lent_weights(ggml_backend_dev_t device) :
        device(device) {
    }

    // copy to the device what a graph reads from host memory, embeddings excepted: of these a few rows are read.
    // ends earlier loans. throws std::runtime_error
    void lend(const ggml_cgraph * gf);

    void end() { copies.clear(); }

    // let the graph read the copies
    void substitute(ggml_cgraph * gf) const;

    size_t get_bytes() const { return bytes; }

private:
    ggml_backend_dev_t device;
    llama_snapkv_gctx ctx;
    ggml_backend_buffer_ptr buf;
    std::unordered_map<const ggml_tensor *, ggml_tensor *> copies;
    size_t bytes = 0; // largest loan
};
