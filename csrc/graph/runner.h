// Builds, allocates and computes graphs on a context's backends, with a scheduler of its own in the place of the context's.
#pragma once

#include "upstream/snapkv-alloc.h"

#include "llama-context.h"

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <vector>

struct llama_snapkv_compute_error : std::runtime_error {
    explicit llama_snapkv_compute_error(ggml_status status);
    const ggml_status status;
};

class llama_snapkv_runner {
public:
    using builder = std::function<ggml_cgraph *(ggml_context * gctx)>;

    explicit llama_snapkv_runner(llama_context & ctx);
    // drops the compute buffers; the context has to reserve its own again (llama_snapkv_reserve(), or decode() does)
    ~llama_snapkv_runner();

    // drop the context's compute buffers, which would only lie beside these; keep: they are needed before this one ends. throws
    // std::bad_alloc or std::runtime_error
    void begin(int64_t max_nodes, bool keep = false);

    // so many schedulers, each with a plan and compute buffers of its own, for graphs that are in flight on several devices. the first
    // one is in use. buffers of the others are dropped. throws std::bad_alloc
    void make_lanes(uint32_t n);
    void use_lane(uint32_t i);

    // where they were kept: the context is an ordinary one until the next swap()
    void swap();

    // build a graph and allocate it; gf is in the context that is returned. largest: one that has the largest sizes of all that follow. where
    // it is of the same topology, the buffers are planned for it, since a graph that outgrows its plan waits for all devices to come to
    // rest. throws std::runtime_error or std::bad_alloc
    llama_snapkv_gctx allocate(const builder & build, ggml_cgraph *& gf, const builder & largest = {});

    // plan the compute buffers for a graph that will be allocated later: does it fit? throws std::runtime_error or std::bad_alloc
    void reserve(const builder & build);

    // allocate a graph, compute it and wait for its end. throws llama_snapkv_compute_error, or as allocate(); set_inputs: before it starts
    llama_snapkv_gctx compute(const builder & build, const std::function<void()> & set_inputs = {});

    // start a graph. the host may go on before the device has ended
    ggml_status start(ggml_cgraph * gf, bool batched);
    void finish();

    // the context's backend for a device, null if it has none
    ggml_backend_t backend_of(ggml_backend_dev_t dev) const;

    int64_t get_max_nodes() const { return max_nodes; }
    size_t get_bytes() const { return bytes; } // largest compute buffers so far

    // for the tensors and the graph of a builder. throws std::bad_alloc
    llama_snapkv_gctx make_context() const;

private:
    struct lane {
        ggml_backend_sched_ptr sched; // of the one in use: in the context
        uint64_t planned = 0; // topology that its buffers are planned for
    };

    bool plan(const builder & build, uint64_t topology); // if the graph has it
    void forget_plan();
    void forget_graphs();
    void count_bytes();

    llama_context & ctx;
    ggml_backend_sched_ptr kept; // the other scheduler: the context's, or within two swap() this one's
    size_t kept_bytes = 0;
    int64_t max_nodes = 0;
    std::vector<lane> lanes = std::vector<lane>(1);
    uint32_t in_use = 0;
    size_t bytes = 0;
};

// reserve the context's ordinary compute buffers. throws std::bad_alloc or std::runtime_error
void llama_snapkv_reserve(llama_context & ctx);

// bytes of the compute buffers that the context holds now
size_t llama_snapkv_compute_bytes(llama_context & ctx);
