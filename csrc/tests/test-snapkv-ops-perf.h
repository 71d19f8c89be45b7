// Speed of the ops of test-snapkv-ops: fused against the stock path, and against how fast the device copies.
#pragma once

#include "test-snapkv-ops-device.h"

#include "evict/rank.h"

#include "evict/stock.h"

#include <chrono>
#include <functional>
#include <utility>

struct ops_perf_row {
    int64_t n;
    double stats, votes, select, evict, fused, stock; // ms; stock is NAN where the device cannot run it
    double k_gbs;                                     // GB/s of K, read by stats and by votes
};

struct ops_perf_log {
    std::string devices;

    void append(const ops_device & dev, const ops_options & opt, double copy_gbs, const std::vector<ops_perf_row> & rows) {
        char buf[512];
        snprintf(buf, sizeof(buf), "%s{\"device\": \"%s\", \"description\": \"%s\", \"head_dim\": %d, \"n_head_kv\": 8, \"group\": %d, \"window\": 32, \"kernel\": %u, \"type\": \"f16\", \"threads\": %d, \"copy_gbs\": %.2f, \"rows\": [",
                devices.empty() ? "" : ",\n", dev.name.c_str(), ggml_backend_dev_description(dev.dev), opt.head_dim, opt.group, llama_snapkv_default_params().kernel_size, opt.n_threads, copy_gbs);
        devices += buf;
        for (const auto & r : rows) {
            char stock[32] = "null";
            if (std::isfinite(r.stock)) {
                snprintf(stock, sizeof(stock), "%.4f", r.stock);
            }
            snprintf(buf, sizeof(buf), "%s\n  {\"n\": %lld, \"stats_ms\": %.4f, \"votes_ms\": %.4f, \"select_ms\": %.4f, \"evict_ms\": %.4f, \"fused_ms\": %.4f, \"stock_ms\": %s, \"k_gbs\": %.2f}",
                    &r == rows.data() ? "" : ",", (long long) r.n, r.stats, r.votes, r.select, r.evict, r.fused, stock, r.k_gbs);
            devices += buf;
        }
        devices += "]}";
    }

    bool write(const std::string & path) const {
        FILE * f = fopen(path.c_str(), "w");
        const bool ok = f && fprintf(f, "[%s]\n", devices.c_str()) > 0;
        return f && fclose(f) == 0 && ok;
    }
};

// median milliseconds of a call, which does the same thing n_times
static double ops_median_ms(int n_times, const std::function<void()> & run) {
    run();
    std::vector<double> ms;
    double total = 0.0;
    while (ms.size() < 3 || (total < 500.0 && ms.size() < 50)) {
        const auto t0 = std::chrono::steady_clock::now();
        run();
        ms.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - t0).count());
        total += ms.back();
    }
    std::nth_element(ms.begin(), ms.begin() + ms.size() / 2, ms.end());
    return ms[ms.size() / 2] / n_times;
}

// a graph of `n_times` nodes that do not depend on one another: a GPU then waits for no host
static double ops_time(ops_device & dev, int n_times, const std::function<ggml_tensor *(ggml_context *)> & build) {
    ops_tensors ts(n_times * 8);
    ggml_cgraph * gf = ggml_new_graph(ts);
    for (int i = 0; i < n_times; ++i) {
        ggml_build_forward_expand(gf, build(ts));
    }
    if (!dev.supports(gf)) {
        return NAN;
    }
    ts.alloc(dev);
    return ops_median_ms(n_times, [&]() { dev.compute(gf); });
}

// GB/s, read and written
static double ops_copy_speed(ops_device & dev) {
    ops_tensors ts;
    const int64_t n = dev.is_cpu ? 16 << 20 : 128 << 20;
    ggml_tensor * a = ggml_new_tensor_1d(ts, GGML_TYPE_F32, n);
    ggml_tensor * b = ggml_new_tensor_1d(ts, GGML_TYPE_F32, n);
    ts.alloc(dev);
    ggml_backend_buffer_clear(ts.buffer.get(), 0);
    const double ms = ops_time(dev, 4, [&](ggml_context * ctx) { return ggml_cpy(ctx, a, b); });
    return 2.0 * (double) ggml_nbytes(a) / ms / 1e6;
}

static void ops_fill(ggml_tensor * t) {
    std::vector<ggml_fp16_t> block(1 << 20); // any larger and the host is what takes the time
    ops_random rnd(1);
    for (auto & x : block) {
        x = ggml_fp32_to_fp16(rnd.normal());
    }
    for (size_t at = 0; at < ggml_nbytes(t); at += block.size() * 2) {
        ggml_backend_tensor_set(t, block.data(), at, std::min(block.size() * 2, ggml_nbytes(t) - at));
    }
}

// what llama_snapkv_prefill() does for one layer without the fused ops, downloads and uploads included
static double ops_time_stock(ops_device & dev, const ops_case & c, const ops_input_tensors & in) {
    ops_tensors ts;
    ggml_tensor * ids = ggml_new_tensor_2d(ts, GGML_TYPE_I32, c.n_kept, c.n_head_kv);
    ggml_tensor * mask = ggml_new_tensor_2d(ts, GGML_TYPE_F32, c.n, c.w);
    ts.alloc(dev);
    ops_set(mask, ops_mask(c));

    llama_snapkv_observation obs;
    obs.q = in.q;
    obs.k = in.k;
    obs.mask = mask;
    obs.scale = c.scale();
    ops_stock score(dev), evict(dev);
    const llama_snapkv_votes votes = llama_snapkv_graph_score(score.graph, score.gf, obs, ops_params(c));
    llama_snapkv_graph_evict(evict.graph, evict.gf, in.cache_k, in.compact_k, ids, c.n_head_kv, OPS_MARGIN, c.n_kept, c.m(), c.w);
    llama_snapkv_graph_evict(evict.graph, evict.gf, in.cache_v, in.compact_v, ids, c.n_head_kv, OPS_MARGIN, c.n_kept, c.m(), c.w);
    if (!score.alloc(dev) || !evict.alloc(dev)) {
        return NAN;
    }
    double coverage = 0.0;
    const double res = ops_median_ms(1, [&]() {
        dev.compute(score.gf);
        std::vector<float> pooled, mass;
        for (int h = 0; h < c.n_head_kv; ++h) {
            ops_get(votes.pooled[h], pooled, c.m());
            ops_get(votes.mass[h], mass, c.n);
            const std::vector<int32_t> kept = llama_snapkv_select(pooled, c.n_kept, c.n_sink);
            coverage += llama_snapkv_coverage_of(mass, kept, c.w);
            ggml_backend_tensor_set(ids, kept.data(), h * ids->nb[1], ids->nb[1]);
        }
        dev.compute(evict.gf);
    });
    GGML_ASSERT(coverage > 0.0);
    return res;
}

static ops_perf_row ops_time_size(ops_device & dev, const ops_options & opt, int64_t n) {
    ops_case c;
    c.head_dim = opt.head_dim;
    c.n_head_kv = 8;
    c.g = opt.group;
    c.w = 32;
    c.n = n;
    c.n_kept = (int) std::min<int64_t>(992, c.m());
    const llama_snapkv_params defaults = llama_snapkv_default_params();
    c.kernel = (int) defaults.kernel_size;
    c.pool = defaults.pooling;
    c.reduce = defaults.aggregation;
    c.own = defaults.self_weight;

    ops_tensors ts;
    ops_input_tensors in(ts, c, n);
    ggml_tensor * stats = snapkv_op_stats(ts, in.q, in.k, nullptr, c.scale(), 0.0f);
    ggml_tensor * votes = snapkv_op_votes(ts, in.q, in.k, stats, c.scale(), 0.0f, c.kernel, c.pool, c.reduce, c.own);
    ggml_tensor * ids = snapkv_op_select(ts, votes, c.w, c.n_kept, 0);
    ggml_cgraph * gf = ggml_new_graph(ts);
    ggml_build_forward_expand(gf, ids);
    ops_perf_row res = { n, NAN, NAN, NAN, NAN, NAN, NAN, NAN };
    ts.alloc(dev);
    if (!dev.supports(gf)) {
        return res;
    }
    ops_fill(in.cache_k);
    ops_fill(in.cache_v);
    ops_case only_q = c;
    only_q.n = only_q.w;
    in.set_q(c, ops_make_data(only_q).q);
    dev.compute(gf);
    // results as leaves, so that a later op is timed without the earlier ones
    ops_tensors leaves;
    auto leaf = [&](ggml_tensor *& t) { return std::exchange(t, ggml_dup_tensor(leaves, t)); };
    ggml_tensor * from[] = { leaf(stats), leaf(votes), leaf(ids) };
    leaves.alloc(dev);
    ggml_backend_tensor_copy(from[0], stats);
    ggml_backend_tensor_copy(from[1], votes);
    ggml_backend_tensor_copy(from[2], ids);

    auto evict = [&](ggml_context * ctx, ggml_tensor * from, ggml_tensor * compact, ggml_tensor * by) {
        return snapkv_op_evict(ctx, ops_target(ctx, compact), from, by, c.n_head_kv, (int32_t) c.m());
    };
    const int times = dev.is_cpu ? 1 : 20;
    res.stats = ops_time(dev, times, [&](ggml_context * ctx) { return snapkv_op_stats(ctx, in.q, in.k, nullptr, c.scale(), 0.0f); });
    res.votes = ops_time(dev, times, [&](ggml_context * ctx) { return snapkv_op_votes(ctx, in.q, in.k, stats, c.scale(), 0.0f, c.kernel, c.pool, c.reduce, c.own); });
    res.select = ops_time(dev, times, [&](ggml_context * ctx) { return snapkv_op_select(ctx, votes, c.w, c.n_kept, 0); });
    res.evict = ops_time(dev, times, [&](ggml_context * ctx) { return evict(ctx, in.cache_k, in.compact_k, ids); }) +
            ops_time(dev, times, [&](ggml_context * ctx) { return evict(ctx, in.cache_v, in.compact_v, ids); });

    // one layer after the other, as a prefill has them
    ops_tensors all(times * 16);
    ggml_cgraph * chain = ggml_new_graph(all);
    for (int i = 0; i < times; ++i) {
        ggml_tensor * s = snapkv_op_stats(all, in.q, in.k, nullptr, c.scale(), 0.0f);
        ggml_tensor * v = snapkv_op_votes(all, in.q, in.k, s, c.scale(), 0.0f, c.kernel, c.pool, c.reduce, c.own);
        ggml_tensor * k = snapkv_op_select(all, v, c.w, c.n_kept, 0);
        ggml_build_forward_expand(chain, evict(all, in.cache_k, in.compact_k, k));
        ggml_build_forward_expand(chain, evict(all, in.cache_v, in.compact_v, k));
    }
    all.alloc(dev);
    res.fused = ops_median_ms(times, [&]() { dev.compute(chain); });
    res.stock = ops_time_stock(dev, c, in);
    res.k_gbs = 2.0 * (double) c.n * c.n_head_kv * c.head_dim * 2.0 / (res.stats + res.votes) / 1e6;
    return res;
}

static void ops_perf(ops_device & dev, const ops_options & opt, ops_perf_log & log) {
    dev.set_threads(opt.n_threads);
    const double copy = ops_copy_speed(dev);
    printf("copies %.1f GB/s, read and written. head_dim %d, n_head_kv 8, group %d, window 32, kernel %u, f16, 1024 rows kept; ms a layer\n", copy, opt.head_dim, opt.group,
            llama_snapkv_default_params().kernel_size);
    printf("%8s %9s %9s %9s %9s %9s %9s %7s %9s %6s\n", "n", "stats", "votes", "select", "evict", "fused", "stock", "ratio", "K GB/s", "share");
    std::vector<ops_perf_row> rows;
    for (const int64_t n : opt.sizes) {
        if (opt.quick && n > opt.sizes[0]) {
            break;
        }
        const ops_perf_row r = ops_time_size(dev, opt, n);
        if (!std::isfinite(r.fused)) {
            printf("%8lld not supported\n", (long long) n);
            continue;
        }
        printf("%8lld %9.3f %9.3f %9.3f %9.3f %9.3f %9.3f %7.2f %9.1f %5.1f%%\n", (long long) n, r.stats, r.votes, r.select, r.evict, r.fused, r.stock, r.stock / r.fused,
                r.k_gbs, 100.0 * r.k_gbs / copy);
        fflush(stdout);
        rows.push_back(r);
    }
    log.append(dev, opt, copy, rows);
}
