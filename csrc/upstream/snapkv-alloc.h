// Memory that may run out: these throw where ggml would end the process.
#pragma once

#include "ggml-backend.h"
#include "ggml-cpp.h"

#include <cstdint>
#include <cstdlib>
#include <memory>

// true where a test wants the allocation of this part to fail (environment variable SNAPKV_TEST_FAIL_ALLOC)
bool llama_snapkv_alloc_fails(const char * part);

// a buffer for a part of the prefill, which the error names. throws std::runtime_error
ggml_backend_buffer_ptr llama_snapkv_alloc_buffer(ggml_backend_buffer_type_t buft, size_t size, const char * part);

// Tensors and graphs without their data. ggml_init() ends the process where it gets no memory, so it is given some
class llama_snapkv_gctx {
public:
    llama_snapkv_gctx() = default;
    explicit llama_snapkv_gctx(size_t size); // throws std::bad_alloc

    ggml_context * get() const { return ctx.get(); }

private:
    struct deleter {
        void operator()(void * p) const { free(p); }
    };
    std::unique_ptr<void, deleter> buffer; // outlives ctx
    ggml_context_ptr ctx;
};

// throws std::bad_alloc unless so much could be had now, for what ggml allocates itself
void llama_snapkv_require_memory(size_t size);

// more than the graph allocator's hash table and lists take for a node
static constexpr size_t LLAMA_SNAPKV_PLAN_BYTES_PER_NODE = 1024;

// llama_context::sched_reserve, before it makes a scheduler for graphs of so many nodes and plans some: throws
// std::bad_alloc unless so much memory could be had now
void llama_snapkv_require_sched(size_t max_nodes);

static constexpr size_t LLAMA_SNAPKV_STEP_BYTES = 64 << 20;

// Before llama.cpp computes something: throws std::runtime_error unless there is memory for what it takes without
// looking whether it gets it (lists, small graphs, the work buffer), and for the stacks of threads that this thread has
// not started yet. OpenMP ends the process where it cannot start one
void llama_snapkv_require_step(int n_threads);
