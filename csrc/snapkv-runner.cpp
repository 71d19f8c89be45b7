#include "snapkv-runner.h"

#include "snapkv-access.h"
#include "snapkv-graph.h"
#include "snapkv-staging.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <stdexcept>

using access = llama_snapkv_access;

// ggml ends the process where it gets no memory for a scheduler's and a graph's metadata, so that is asked for before.
// throws std::bad_alloc
static void require_metadata_memory(int64_t max_nodes) {
    static constexpr size_t MAX_SPLIT_INPUTS = 30; // GGML_SCHED_MAX_SPLIT_INPUTS
    const size_t per_node = 2 * MAX_SPLIT_INPUTS * (sizeof(ggml_tensor) + 4 * sizeof(int)) + 8 * ggml_tensor_overhead();
    void * p = malloc(max_nodes * per_node);
    if (!p) {
        throw std::bad_alloc();
    }
    free(p);
}

// the context's scheduler, without any buffer yet
static void reset_sched(llama_context & ctx, int64_t max_nodes) {
    auto & ptrs = access::backend_ptrs(ctx);
    auto & buft = access::backend_buft(ctx);
    access::sched(ctx).reset(); // first, so that there are never two
    access::sched(ctx).reset(ggml_backend_sched_new(ptrs.data(), buft.data(), (int) ptrs.size(), max_nodes, false, ctx.get_cparams().op_offload));
}

llama_snapkv_runner::llama_snapkv_runner(llama_context & ctx) :
    ctx(ctx) {
}

llama_snapkv_runner::~llama_snapkv_runner() {
    if (max_nodes > 0) {
        reset_sched(ctx, 64); // holds the place until the ordinary one is reserved
        access::sched_need_reserve(ctx) = true;
    }
}

void llama_snapkv_runner::begin(int64_t n_nodes) {
    max_nodes = n_nodes;
    ctx.synchronize();
    for (auto & prev : access::gf_res_prev(ctx)) {
        prev.reset();
    }
    access::gf_res_prev_active(ctx) = nullptr;
    access::sched(ctx).reset();
    require_metadata_memory(max_nodes);
    reset_sched(ctx, max_nodes);
    ggml_backend_sched_set_eval_callback(ctx.get_sched(), ctx.get_cparams().cb_eval, ctx.get_cparams().cb_eval_user_data);
}

ggml_context_ptr llama_snapkv_runner::allocate(const builder & build, ggml_cgraph *& gf) {
    const ggml_init_params ip = { 2 * max_nodes * ggml_tensor_overhead() + ggml_graph_overhead_custom(max_nodes, false), nullptr, true };
    ggml_backend_sched_t sched = ctx.get_sched();

    ggml_backend_sched_reset(sched);
    ggml_context_ptr gctx(ggml_init(ip));
    gf = build(gctx.get());

    // the allocator keeps its plan as long as counts and sizes fit, although a graph of another topology needs another
    // plan. reserving splits the graph, after which it must not be split again: build it anew
    const uint64_t topology = llama_snapkv_graph_topology(gf);
    if (topology != planned) {
        const bool ok = ggml_backend_sched_reserve(sched, gf);
        planned = topology;
        ggml_backend_sched_reset(sched);
        if (!ok) {
            throw std::runtime_error("out of memory: the compute buffers of the prefill");
        }
        gctx.reset(ggml_init(ip));
        gf = build(gctx.get());
    }
    if (llama_snapkv_alloc_fails("compute") || !ggml_backend_sched_alloc_graph(sched, gf)) {
        throw std::runtime_error("out of memory: the compute buffers of the prefill");
    }

    bytes = std::max(bytes, llama_snapkv_compute_bytes(ctx));
    return gctx;
}

ggml_status llama_snapkv_runner::compute(ggml_cgraph * gf, bool batched) {
    const ggml_status status = ctx.graph_compute(gf, batched);
    ggml_backend_sched_synchronize(ctx.get_sched());
    return status;
}

void llama_snapkv_reserve(llama_context & ctx) {
    require_metadata_memory(ctx.graph_max_nodes(ctx.n_ubatch()));
    ctx.sched_reserve();
}

size_t llama_snapkv_compute_bytes(llama_context & ctx) {
    size_t bytes = 0;
    for (ggml_backend_t backend : access::backend_ptrs(ctx)) {
        bytes += ggml_backend_sched_get_buffer_size(ctx.get_sched(), backend);
    }
    return bytes;
}
