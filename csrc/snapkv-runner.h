// Builds, allocates and computes graphs on a context's backends, with a scheduler of its own in the place of the context's.
#pragma once

#include "llama-context.h"

#include "ggml-cpp.h"

#include <cstdint>
#include <functional>

class llama_snapkv_runner {
public:
    // graphs are built twice where the allocator needs a new plan, so building must not have effects
    using builder = std::function<ggml_cgraph *(ggml_context * gctx)>;

    explicit llama_snapkv_runner(llama_context & ctx);
    // drops the compute buffers; the context has to reserve its own again (llama_snapkv_reserve(), or decode() does)
    ~llama_snapkv_runner();

    // drop the context's compute buffers, which would only lie beside these. throws std::bad_alloc
    void begin(int64_t max_nodes);

    // build a graph and allocate it; gf is in the context that is returned. throws std::runtime_error
    ggml_context_ptr allocate(const builder & build, ggml_cgraph *& gf);

    ggml_status compute(ggml_cgraph * gf, bool batched);

    int64_t get_max_nodes() const { return max_nodes; }
    size_t get_bytes() const { return bytes; } // largest compute buffers so far

private:
    llama_context & ctx;
    int64_t max_nodes = 0;
    uint64_t planned = 0; // topology that the scheduler's buffers are planned for
    size_t bytes = 0;
};

// reserve the context's ordinary compute buffers. throws std::bad_alloc or std::runtime_error
void llama_snapkv_reserve(llama_context & ctx);

// bytes of the compute buffers that the context holds now
size_t llama_snapkv_compute_bytes(llama_context & ctx);
