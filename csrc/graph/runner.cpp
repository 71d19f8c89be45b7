#include "graph/runner.h"

#include "graph/cut.h"
#include "upstream/access.h"
#include "upstream/snapkv-alloc.h"

#include "llama-impl.h"

#include "ggml-backend.h"

#include <algorithm>
#include <stdexcept>

using access = llama_snapkv_access;

static ggml_backend_sched_t make_sched(llama_context & ctx, int64_t max_nodes) {
    auto & ptrs = access::backend_ptrs(ctx);
    auto & buft = access::backend_buft(ctx);
    return ggml_backend_sched_new(ptrs.data(), buft.data(), (int) ptrs.size(), max_nodes, false, ctx.get_cparams().op_offload);
}

// the context's scheduler, without any buffer yet
static void reset_sched(llama_context & ctx, int64_t max_nodes) {
    access::sched(ctx).reset(); // first, so that there are never two
    access::sched(ctx).reset(make_sched(ctx, max_nodes));
}

llama_snapkv_compute_error::llama_snapkv_compute_error(ggml_status status) :
    std::runtime_error(format("the backend failed to compute a graph of the prefill (status %d)", (int) status)), status(status) {
}

llama_snapkv_runner::llama_snapkv_runner(llama_context & ctx) :
    ctx(ctx) {
}

llama_snapkv_runner::~llama_snapkv_runner() {
    if (kept) {
        access::sched(ctx) = std::move(kept);
        forget_graphs();
    } else if (max_nodes > 0) {
        reset_sched(ctx, 64); // holds the place until the ordinary one is reserved
        access::sched_need_reserve(ctx) = true;
    }
}

// those of the context, which it would compute again as they are
void llama_snapkv_runner::forget_graphs() {
    for (auto & prev : access::gf_res_prev(ctx)) {
        prev.reset();
    }
    access::gf_res_prev_active(ctx) = nullptr;
}

void llama_snapkv_runner::begin(int64_t n_nodes, bool keep) {
    const auto & cparams = ctx.get_cparams();
    llama_snapkv_require_step(std::max(cparams.n_threads, cparams.n_threads_batch));
    ctx.synchronize();
    if (keep) {
        llama_snapkv_reserve(ctx); // unless it is
        kept_bytes = llama_snapkv_compute_bytes(ctx);
        kept = std::move(access::sched(ctx));
    } else {
        forget_graphs();
        access::sched(ctx).reset();
    }
    max_nodes = n_nodes;
    llama_snapkv_require_sched(max_nodes);
    reset_sched(ctx, max_nodes);
    ggml_backend_sched_set_eval_callback(ctx.get_sched(), ctx.get_cparams().cb_eval, ctx.get_cparams().cb_eval_user_data);
}

void llama_snapkv_runner::make_lanes(uint32_t n) {
    use_lane(0);
    lanes.resize(1);
    lanes.resize(n);
    for (uint32_t i = 1; i < n; ++i) {
        llama_snapkv_require_sched(max_nodes);
        lanes[i].sched.reset(make_sched(ctx, max_nodes));
        ggml_backend_sched_set_eval_callback(lanes[i].sched.get(), ctx.get_cparams().cb_eval, ctx.get_cparams().cb_eval_user_data);
    }
}

void llama_snapkv_runner::use_lane(uint32_t i) {
    std::swap(access::sched(ctx), lanes[in_use].sched);
    in_use = i;
    std::swap(access::sched(ctx), lanes[in_use].sched);
}

llama_snapkv_gctx llama_snapkv_runner::make_context() const {
    llama_snapkv_gctx gctx(2 * max_nodes * ggml_tensor_overhead() + ggml_graph_overhead_custom(max_nodes, false));
    llama_snapkv_require_memory(max_nodes * LLAMA_SNAPKV_PLAN_BYTES_PER_NODE); // to plan and compute what will be built
    return gctx;
}

// the allocator keeps its plan as long as counts and sizes fit, although a graph of another topology needs another plan.
// the graph itself cannot be given to reserve(): that splits it, and a graph must not be split twice
void llama_snapkv_runner::forget_plan() {
    llama_snapkv_gctx gctx = make_context();
    ggml_cgraph * gf = ggml_new_graph_custom(gctx.get(), 8, false);
    ggml_tensor * t = ggml_new_tensor_1d(gctx.get(), GGML_TYPE_F32, 1);
    ggml_set_input(t);
    ggml_build_forward_expand(gf, ggml_scale(gctx.get(), t, 1.0f));
    ggml_backend_sched_reserve(ctx.get_sched(), gf);
    ggml_backend_sched_reset(ctx.get_sched());
}

bool llama_snapkv_runner::plan(const builder & build, uint64_t topology) {
    ggml_backend_sched_reset(ctx.get_sched());
    llama_snapkv_gctx gctx = make_context();
    ggml_cgraph * gf = build(gctx.get());
    if (llama_snapkv_graph_topology(gf) != topology) {
        return false;
    }
    if (!ggml_backend_sched_reserve(ctx.get_sched(), gf)) {
        throw std::runtime_error("out of memory: the compute buffers of the prefill");
    }
    ggml_backend_sched_reset(ctx.get_sched());
    return true;
}

llama_snapkv_gctx llama_snapkv_runner::allocate(const builder & build, ggml_cgraph *& gf, const builder & largest) {
    ggml_backend_sched_t sched = ctx.get_sched();

    ggml_backend_sched_reset(sched);
    llama_snapkv_gctx gctx = make_context();
    gf = build(gctx.get());

    const uint64_t topology = llama_snapkv_graph_topology(gf);
    if (topology != lanes[in_use].planned) {
        if (!largest || !plan(largest, topology)) {
            forget_plan();
        }
        lanes[in_use].planned = topology;
        gctx = make_context();
        gf = build(gctx.get());
    }
    if (llama_snapkv_alloc_fails("compute") || !ggml_backend_sched_alloc_graph(sched, gf)) {
        throw std::runtime_error("out of memory: the compute buffers of the prefill");
    }

    count_bytes();
    return gctx;
}

void llama_snapkv_runner::reserve(const builder & build) {
    ggml_backend_sched_t sched = ctx.get_sched();
    ggml_backend_sched_reset(sched);
    llama_snapkv_gctx gctx = make_context();
    const bool ok = ggml_backend_sched_reserve(sched, build(gctx.get()));
    lanes[in_use].planned = 0;
    ggml_backend_sched_reset(sched);
    if (!ok || llama_snapkv_alloc_fails("compute")) {
        throw std::runtime_error("out of memory: the compute buffers of the prefill");
    }
    count_bytes();
}

llama_snapkv_gctx llama_snapkv_runner::compute(const builder & build, const std::function<void()> & set_inputs) {
    ggml_cgraph * gf = nullptr;
    llama_snapkv_gctx gctx = allocate(build, gf);
    if (set_inputs) {
        set_inputs();
    }
    const ggml_status status = start(gf, true);
    finish();
    if (status != GGML_STATUS_SUCCESS) {
        throw llama_snapkv_compute_error(status);
    }
    return gctx;
}

ggml_status llama_snapkv_runner::start(ggml_cgraph * gf, bool batched) {
    return ctx.graph_compute(gf, batched);
}

void llama_snapkv_runner::swap() {
    ctx.synchronize(); // the devices are the same
    std::swap(access::sched(ctx), kept);
}

void llama_snapkv_runner::finish() {
    if (ctx.get_sched()) { // none where begin() has failed
        ggml_backend_sched_synchronize(ctx.get_sched());
    }
}

ggml_backend_t llama_snapkv_runner::backend_of(ggml_backend_dev_t dev) const {
    for (ggml_backend_t backend : access::backend_ptrs(ctx)) {
        if (ggml_backend_get_device(backend) == dev) {
            return backend;
        }
    }
    return nullptr;
}

void llama_snapkv_reserve(llama_context & ctx) {
    ctx.sched_reserve();
}

static size_t bytes_of(llama_context & ctx, ggml_backend_sched_t sched) {
    size_t bytes = 0;
    for (ggml_backend_t backend : access::backend_ptrs(ctx)) {
        bytes += ggml_backend_sched_get_buffer_size(sched, backend);
    }
    return bytes;
}

size_t llama_snapkv_compute_bytes(llama_context & ctx) {
    return bytes_of(ctx, ctx.get_sched());
}

void llama_snapkv_runner::count_bytes() {
    size_t now = kept_bytes + llama_snapkv_compute_bytes(ctx);
    for (const auto & other : lanes) {
        now += other.sched ? bytes_of(ctx, other.sched.get()) : 0;
    }
    bytes = std::max(bytes, now);
}
