// Runs the ops of test-snapkv-ops on one device: fused, and from stock ops.
#pragma once

#include "test-snapkv-ops-reference.h"

#include "evict/stock.h"
#include "graph/cut.h"
#include "ops/snapkv-op.h"

#include "ggml-cpp.h"

#include <cstdlib>
#include <thread>

static constexpr int OPS_MARGIN = 2; // rows before and after the target of an eviction

struct ops_options {
    bool perf = false;
    bool quick = false;
    uint32_t seed = 1;
    int head_dim = 128;
    int group = 4;
    int n_threads = 0; // all
    std::string device, filter, json;
    std::vector<int64_t> sizes = { 4096, 32768, 131072 };

    bool parse(int argc, char ** argv) {
        for (int i = 1; i < argc; ++i) {
            const std::string arg = argv[i];
            if (arg == "test" || arg == "perf") {
                perf = arg == "perf";
                continue;
            }
            if (arg == "--quick") {
                quick = true;
                continue;
            }
            if (++i >= argc) {
                return false;
            }
            const char * value = argv[i];
            if (arg == "--device") {
                device = value;
            } else if (arg == "--filter") {
                filter = value;
            } else if (arg == "--json") {
                json = value;
            } else if (arg == "--seed") {
                seed = (uint32_t) strtoul(value, nullptr, 10);
            } else if (arg == "--head-dim") {
                head_dim = atoi(value);
            } else if (arg == "--group") {
                group = atoi(value);
            } else if (arg == "--threads") {
                n_threads = atoi(value);
            } else if (arg == "--n") {
                sizes.clear();
                for (const char * p = value; *p; p += *p == ',') {
                    sizes.push_back(strtol(p, const_cast<char **>(&p), 10));
                }
            } else {
                return false;
            }
        }
        return true;
    }
};

struct ops_device {
    ggml_backend_dev_t dev;
    ggml_backend_ptr backend;
    std::string name;
    bool is_cpu;

    explicit ops_device(ggml_backend_dev_t dev) :
        dev(dev), backend(ggml_backend_dev_init(dev, nullptr)), name(ggml_backend_dev_name(dev)), is_cpu(ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU) {
        GGML_ASSERT(backend);
        set_threads(0);
    }

    // 0: all
    void set_threads(int n) {
        auto * set = (ggml_backend_set_n_threads_t) ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(dev), "ggml_backend_set_n_threads");
        if (set) {
            set(backend.get(), n ? n : (int) std::max(1u, std::thread::hardware_concurrency()));
        }
    }

    bool supports(ggml_cgraph * gf) const {
        for (int i = 0; i < ggml_graph_n_nodes(gf); ++i) {
            if (!ggml_backend_dev_supports_op(dev, ggml_graph_node(gf, i))) {
                return false;
            }
        }
        return true;
    }

    void compute(ggml_cgraph * gf) { GGML_ASSERT(ggml_backend_graph_compute(backend.get(), gf) == GGML_STATUS_SUCCESS); }
};

// tensors with a buffer of their own, which nothing else reuses
struct ops_tensors {
    ggml_context_ptr ctx;
    ggml_backend_buffer_ptr buffer;

    explicit ops_tensors(size_t n_tensors = 64) {
        ggml_init_params params = { n_tensors * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true };
        ctx.reset(ggml_init(params));
    }
    operator ggml_context *() const { return ctx.get(); }

    void alloc(ops_device & dev) {
        ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, 1); // or a context of views only would be left alone
        buffer.reset(ggml_backend_alloc_ctx_tensors(ctx.get(), dev.backend.get()));
        GGML_ASSERT(buffer);
    }
};

struct ops_outputs {
    bool supported = false;
    std::vector<float> stats, votes;
    std::vector<int32_t> ids; // and coverage
    std::vector<uint8_t> evicted_k, evicted_v;
};

template <typename T>
static void ops_set(ggml_tensor * t, const std::vector<T> & x) {
    GGML_ASSERT(x.size() * sizeof(T) >= ggml_nbytes(t));
    ggml_backend_tensor_set(t, x.data(), 0, ggml_nbytes(t));
}

template <typename T>
static void ops_get(const ggml_tensor * t, std::vector<T> & x, size_t n) {
    x.resize(n);
    ggml_backend_tensor_get(t, x.data(), 0, n * sizeof(T));
}

static void ops_poison(ggml_tensor * t, uint8_t byte) {
    ops_set(t, std::vector<uint8_t>(ggml_nbytes(t), byte));
}

// rows of the compact cache that an eviction writes
static ggml_tensor * ops_target(ggml_context * ctx, ggml_tensor * compact) {
    return ggml_view_2d(ctx, compact, compact->ne[0], compact->ne[1] - 2 * OPS_MARGIN, compact->nb[1], OPS_MARGIN * compact->nb[1]);
}

// what both paths start from
struct ops_input_tensors {
    ggml_tensor * tokens = nullptr; // of which q is a view
    ggml_tensor *q, *k, *sinks, *cache_k, *cache_v, *compact_k, *compact_v;

    ops_input_tensors(ggml_context * ctx, const ops_case & c, int64_t n_cells) {
        const int64_t n_embd = (int64_t) c.head_dim * c.n_head_kv;
        const int64_t n_rows = c.n_kept + c.w + 2 * OPS_MARGIN;
        const int64_t n_head = (int64_t) c.n_head_kv * c.g;
        if (c.q_view) {
            tokens = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, c.head_dim, n_head, c.w + OPS_MARGIN);
            q = ggml_view_3d(ctx, tokens, c.head_dim, c.w, n_head, tokens->nb[2], tokens->nb[1], OPS_MARGIN * tokens->nb[2]);
        } else {
            q = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, c.head_dim, c.w, n_head);
        }
        cache_k = ggml_new_tensor_2d(ctx, c.type_k, n_embd, n_cells);
        cache_v = ggml_new_tensor_2d(ctx, c.type_v, n_embd, n_cells);
        compact_k = ggml_new_tensor_2d(ctx, c.type_k, n_embd, n_rows);
        compact_v = ggml_new_tensor_2d(ctx, c.type_v, n_embd, n_rows);
        sinks = c.attn_sinks ? ggml_new_tensor_1d(ctx, GGML_TYPE_F32, q->ne[2]) : nullptr;
        k = c.strided ? ggml_view_3d(ctx, cache_k, c.head_dim, c.n, c.n_head_kv, cache_k->nb[1], ggml_row_size(c.type_k, c.head_dim), 0) : ggml_new_tensor_3d(ctx, c.type_k, c.head_dim, c.n, c.n_head_kv);
    }

    // values [head_dim, w, n_head]
    void set_q(const ops_case & c, const std::vector<float> & values) {
        if (!c.q_view) {
            ops_set(q, values);
            return;
        }
        const size_t n_head = (size_t) c.n_head_kv * c.g;
        std::vector<float> x(ggml_nelements(tokens), NAN);
        for (size_t h = 0; h < n_head; ++h) {
            for (size_t i = 0; i < (size_t) c.w; ++i) {
                memcpy(&x[((i + OPS_MARGIN) * n_head + h) * c.head_dim], &values[(h * c.w + i) * c.head_dim], c.head_dim * sizeof(float));
            }
        }
        ops_set(tokens, x);
    }

    void set(const ops_case & c, const ops_data & data, uint8_t poison) {
        set_q(c, data.q);
        ops_set(cache_k, data.cache_k);
        ops_set(cache_v, data.cache_v);
        ops_poison(compact_k, poison);
        ops_poison(compact_v, poison);
        if (sinks) {
            ops_set(sinks, data.sinks);
        }
        if (!c.strided) {
            const size_t head = ggml_row_size(c.type_k, c.head_dim);
            std::vector<uint8_t> packed(ggml_nbytes(k));
            for (int h = 0; h < c.n_head_kv; ++h) {
                for (int64_t j = 0; j < c.n; ++j) {
                    memcpy(&packed[(h * c.n + j) * head], &data.cache_k[(j * c.n_head_kv + h) * head], head);
                }
            }
            ops_set(k, packed);
        }
    }
};

static ops_outputs ops_run_fused(ops_device & dev, const ops_case & c, const ops_data & data, uint8_t poison) {
    ops_tensors ts;
    ops_input_tensors in(ts, c, data.n_cells);
    ggml_tensor * stats = snapkv_op_stats(ts, in.q, in.k, in.sinks, c.scale(), c.softcap);
    ggml_tensor * votes = snapkv_op_votes(ts, in.q, in.k, stats, c.scale(), c.softcap, c.kernel, c.pool, c.reduce, c.own);
    ggml_tensor * ids = snapkv_op_select(ts, votes, c.w, c.n_kept, c.n_sink);
    ggml_cgraph * gf = ggml_new_graph(ts);
    ggml_build_forward_expand(gf, snapkv_op_evict(ts, ops_target(ts, in.compact_k), in.cache_k, ids, c.n_head_kv, (int32_t) c.m()));
    ggml_build_forward_expand(gf, snapkv_op_evict(ts, ops_target(ts, in.compact_v), in.cache_v, ids, c.n_head_kv, (int32_t) c.m()));

    ops_outputs res;
    ts.alloc(dev);
    res.supported = dev.supports(gf);
    if (!res.supported) {
        return res;
    }
    in.set(c, data, poison);
    for (ggml_tensor * t : { stats, votes, ids }) {
        ops_poison(t, poison);
    }
    dev.compute(gf);
    ops_get(stats, res.stats, (size_t) 2 * c.w * c.n_head_kv * c.g);
    ops_get(votes, res.votes, ggml_nelements(votes));
    ops_get(ids, res.ids, ggml_nelements(ids));
    ops_get(in.compact_k, res.evicted_k, ggml_nbytes(in.compact_k));
    ops_get(in.compact_v, res.evicted_v, ggml_nbytes(in.compact_v));
    return res;
}

static ops_outputs ops_run_select(ops_device & dev, const ops_case & c, const std::vector<float> & values, int n_sink, uint8_t poison) {
    ops_tensors ts;
    ggml_tensor * votes = ggml_new_tensor_3d(ts, GGML_TYPE_F32, c.n, c.n_head_kv, 2);
    ggml_tensor * ids = snapkv_op_select(ts, votes, c.w, c.n_kept, n_sink);
    ggml_cgraph * gf = ggml_new_graph(ts);
    ggml_build_forward_expand(gf, ids);

    ops_outputs res;
    ts.alloc(dev);
    res.supported = dev.supports(gf);
    if (res.supported) {
        ops_set(votes, values);
        ops_poison(ids, poison);
        dev.compute(gf);
        ops_get(ids, res.ids, ggml_nelements(ids));
    }
    return res;
}

// the stock path, as prefill/prefill.cpp drives it
struct ops_stock {
    ops_tensors graph{ 2 * GGML_DEFAULT_GRAPH_SIZE };
    ggml_gallocr_ptr galloc;
    ggml_cgraph * gf;

    explicit ops_stock(ops_device & dev) :
        galloc(ggml_gallocr_new(ggml_backend_get_default_buffer_type(dev.backend.get()))), gf(ggml_new_graph(graph)) {}

    bool alloc(ops_device & dev) { return dev.supports(gf) && ggml_gallocr_alloc_graph(galloc.get(), gf); }
};

static llama_snapkv_params ops_params(const ops_case & c) {
    llama_snapkv_params params = llama_snapkv_default_params();
    params.kernel_size = c.kernel;
    params.pooling = (llama_snapkv_pooling) c.pool;
    params.aggregation = (llama_snapkv_aggregation) c.reduce;
    params.self_weight = c.own;
    return params;
}

static std::vector<float> ops_mask(const ops_case & c) {
    std::vector<float> mask((size_t) c.n * c.w);
    for (int i = 0; i < c.w; ++i) {
        for (int64_t j = 0; j < c.n; ++j) {
            mask[i * c.n + j] = j <= c.m() + i ? 0.0f : -INFINITY;
        }
    }
    return mask;
}

// kept: as the fused op gives them, coverage included
static ops_outputs ops_run_stock(ops_device & dev, const ops_case & c, const ops_data & data, const std::vector<int32_t> & kept, uint8_t poison) {
    ops_tensors ts;
    ops_input_tensors in(ts, c, data.n_cells);
    ggml_tensor * mask = ggml_new_tensor_2d(ts, GGML_TYPE_F32, c.n, c.w);
    ggml_tensor * ids = c.n_kept ? ggml_new_tensor_2d(ts, GGML_TYPE_I32, c.n_kept, c.n_head_kv) : nullptr;
    ts.alloc(dev);
    in.set(c, data, poison);
    ops_set(mask, ops_mask(c));

    llama_snapkv_observation obs;
    obs.q = in.q;
    obs.k = in.k;
    obs.mask = mask;
    obs.sinks = in.sinks;
    obs.scale = c.scale();
    obs.softcap = c.softcap;

    ops_outputs res;
    ops_stock stock(dev);
    const llama_snapkv_votes votes = llama_snapkv_graph_score(stock.graph, stock.gf, obs, ops_params(c));
    res.supported = stock.alloc(dev);
    if (!res.supported) {
        return res;
    }
    dev.compute(stock.gf);
    res.votes.resize((size_t) c.n * c.n_head_kv * 2);
    for (int h = 0; h < c.n_head_kv; ++h) {
        ggml_backend_tensor_get(votes.pooled[h], &res.votes[(size_t) h * c.n], 0, ggml_nbytes(votes.pooled[h]));
        ggml_backend_tensor_get(votes.mass[h], &res.votes[(size_t) (c.n_head_kv + h) * c.n], 0, ggml_nbytes(votes.mass[h]));
    }

    for (int h = 0; h < c.n_head_kv && ids; ++h) {
        ggml_backend_tensor_set(ids, &kept[(size_t) h * (c.n_kept + 1)], h * ids->nb[1], ids->nb[1]);
    }
    auto evict = [&](ggml_tensor * src, ggml_tensor * dst, std::vector<uint8_t> & out) {
        ops_stock copy(dev);
        if (llama_snapkv_can_evict(src, c.n_head_kv)) {
            llama_snapkv_graph_evict(copy.graph, copy.gf, src, dst, ids, c.n_head_kv, OPS_MARGIN, c.n_kept, c.m(), c.w);
            if (copy.alloc(dev)) {
                dev.compute(copy.gf);
                ops_get(dst, out, ggml_nbytes(dst));
            }
        }
    };
    evict(in.cache_k, in.compact_k, res.evicted_k);
    evict(in.cache_v, in.compact_v, res.evicted_v);
    return res;
}
