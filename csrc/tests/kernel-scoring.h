// Scoring, of a device that has its kernels as C++: STATS and VOTES against double loops.
#pragma once

#include "kernel-cases.h"

struct shape {
    ggml_type type;
    int head_dim, n, w, n_head_kv, g;
    float softcap;
    bool sinks;
    int kernel;
    int pool;
    int reduce;
    float own = 0.0f;

    std::string str() const {
        char buf[200];
        snprintf(buf, sizeof(buf), "%s d=%d n=%d w=%d kv=%d g=%d cap=%g sinks=%d kernel=%d pool=%d reduce=%d own=%g %s", ggml_type_name(type), head_dim, n, w,
                n_head_kv, g, softcap, sinks, kernel, pool, reduce, own, device_setting().c_str());
        return buf;
    }
};

struct scoring : tensors {
    shape s;
    float scale;
    ggml_tensor * q;
    ggml_tensor * k;
    ggml_tensor * sinks;
    ggml_tensor * stats;
    ggml_tensor * votes;

    explicit scoring(const shape & s) : s(s), scale(1.0f / std::sqrt((float) s.head_dim)) {
        // views as the engine has them: the last w tokens of a chunk, and a cache that is larger than the prompt
        const int extra = 3;
        ggml_tensor * chunk = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, s.head_dim, s.n_head_kv * s.g, s.w + extra);
        ggml_tensor * cache = ggml_new_tensor_2d(ctx.get(), s.type, s.head_dim * s.n_head_kv, s.n + extra);
        q = ggml_view_3d(ctx.get(), chunk, s.head_dim, s.w, s.n_head_kv * s.g, chunk->nb[2], chunk->nb[1], extra * chunk->nb[2]);
        k = ggml_view_3d(ctx.get(), cache, s.head_dim, s.n, s.n_head_kv, cache->nb[1], cache->nb[1] / s.n_head_kv, 0);
        sinks = s.sinks ? ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, s.n_head_kv * s.g) : nullptr;
        stats = snapkv_op_stats(ctx.get(), q, k, sinks, scale, s.softcap);
        votes = snapkv_op_votes(ctx.get(), q, k, stats, scale, s.softcap, s.kernel, s.pool, s.reduce, s.own);
        alloc();

        fill(chunk, 2.0f);
        fill(cache, 1.0f);
        // beyond the prompt the cache is whatever it was
        memset((char *) cache->data + s.n * cache->nb[1], 0xff, extra * cache->nb[1]);
        if (sinks) {
            fill(sinks, 2.0f);
        }
    }
};

// what is wrong on purpose, to see that the comparison would find it
enum fault { NONE,
    CAUSAL,
    SOFTCAP,
    SINKS,
    POOLING,
    REDUCE,
    MEAN,
    WINDOW,
    SHIFT,
    OWN };

struct reference {
    std::vector<double> stats; // [2, w, n_head]
    std::vector<double> votes; // [n, n_head_kv, 2]

    reference(const scoring & in, fault f) {
        const shape & s = in.s;
        const int n_head = s.n_head_kv * s.g;
        const int np = s.n - s.w;
        stats.resize(2 * s.w * n_head);
        votes.resize(2 * s.n * s.n_head_kv);
        std::vector<double> logit(s.n);
        std::vector<std::vector<float>> keys(s.n);
        for (int hk = 0; hk < s.n_head_kv; ++hk) {
            for (int j = 0; j < s.n; ++j) {
                keys[j] = row_of(in.k, j, hk);
            }
            double * pooled = votes.data() + (size_t) hk * s.n;
            double * mass = pooled + (size_t) s.n_head_kv * s.n;
            for (int head = hk * s.g; head < (hk + 1) * s.g; ++head) {
                std::vector<double> sum(s.n), top(s.n);
                for (int i = 0; i < s.w; ++i) {
                    const std::vector<float> qi = row_of(in.q, i, head);
                    const int visible = std::max(1, np + i + 1 - (f == CAUSAL));
                    const double sink = in.sinks && f != SINKS ? ((const float *) in.sinks->data)[head] : -INFINITY;
                    double m = sink;
                    for (int j = 0; j < visible; ++j) {
                        double x = 0.0;
                        for (int d = 0; d < s.head_dim; ++d) {
                            x += (double) qi[d] * keys[j][d];
                        }
                        x *= in.scale;
                        if (s.softcap != 0.0f && f != SOFTCAP) {
                            x = s.softcap * std::tanh(x / s.softcap);
                        }
                        logit[j] = x;
                        m = std::max(m, x);
                    }
                    double total = std::exp(sink - m);
                    for (int j = 0; j < visible; ++j) {
                        total += std::exp(logit[j] - m);
                    }
                    for (int j = 0; j < visible; ++j) {
                        const double p = std::exp(logit[j] - m) / total;
                        sum[j] += p;
                        top[j] = std::max(top[j], p);
                    }
                    stats[2 * (head * s.w + i)] = m;
                    stats[2 * (head * s.w + i) + 1] = total;
                }
                const int n_pool = f == WINDOW ? s.n : np;
                const std::vector<double> & vote = (s.reduce == LLAMA_SNAPKV_AGGREGATION_MAX) != (f == REDUCE) ? top : sum;
                for (int j = 0; j < s.n; ++j) {
                    mass[j] += sum[j] / s.g;
                    double a = 0.0, b = 0.0;
                    int cells = 0;
                    for (int t = j - s.kernel / 2; t <= j + s.kernel / 2; ++t) {
                        if (t >= 0 && t < n_pool) {
                            a += t == 0 && s.kernel > 1 && s.pool == LLAMA_SNAPKV_POOLING_NOSINK ? 0.0 : vote[t];
                            b = std::max(b, vote[t]);
                            cells++;
                        }
                    }
                    const int divisor = f == POOLING ? std::max(cells, 1) : s.kernel;
                    double score = a / divisor;
                    if (s.kernel > 1 && s.pool == LLAMA_SNAPKV_POOLING_MAX) {
                        score = b;
                    }
                    score += f == OWN ? 0.0 : s.own * vote[j];
                    const int to = f == SHIFT ? j + 1 : j;
                    if (to < np) {
                        pooled[to] += score / (f == MEAN ? 1 : s.g);
                    }
                }
            }
        }
    }
};

// the case c of those by chance. dims: head sizes, of which the last two are no whole blocks of quantized types
static shape shape_by_chance(int c, const int (&dims)[8], int most_w, int most_before) {
    shape s;
    s.type = KV_TYPES[c % 5];
    s.head_dim = dims[pick(0, ggml_is_quantized(s.type) ? 5 : 7)];
    s.g = c % 4 == 0 ? pick(1, 16) : pick(1, 4);
    s.w = c % 6 == 0 ? pick(1, 100) : pick(1, most_w);
    s.n_head_kv = pick(1, 2);
    s.n = s.w + (c % 7 == 0 ? pick(0, 2) : pick(3, most_before));
    s.softcap = c % 3 == 0 ? 20.0f : 0.0f;
    s.sinks = pick(0, 1);
    s.kernel = c % 8 == 0 ? 127 : 2 * pick(0, 6) + 1;
    s.pool = pick(0, LLAMA_SNAPKV_POOLING_NOSINK);
    s.reduce = pick(0, 1);
    s.own = 0.25f * (float) pick(0, 2);
    return s;
}

static double max_error_stats = 0.0; // of all cases
static double max_error_votes = 0.0;

// in units of what float arithmetic may do; beyond 1 is a failure
static double error_stats(const scoring & in, const reference & ref) {
    const float * got = (const float *) in.stats->data;
    double res = 0.0;
    for (size_t i = 0; i < ref.stats.size(); i += 2) {
        const double allowed = 1e-5 + 1e-6 * std::fabs(ref.stats[i]);
        const double m = std::fabs(got[i] - ref.stats[i]) / allowed;
        const double lse = std::fabs(got[i] + std::log((double) got[i + 1]) - ref.stats[i] - std::log(ref.stats[i + 1])) / allowed;
        res = std::max({ res, std::isfinite(m) ? m : 1e9, std::isfinite(lse) ? lse : 1e9 });
    }
    return res;
}

static double error_votes(const scoring & in, const reference & ref) {
    const float * got = (const float *) in.votes->data;
    double res = 0.0;
    for (size_t i = 0; i < ref.votes.size(); ++i) {
        const double e = std::fabs(got[i] - ref.votes[i]) / (1e-5 * ref.votes[i] + 1e-9);
        res = std::max(res, std::isfinite(e) ? e : 1e9);
    }
    return res;
}

static void test_scoring(const shape & s) {
    scoring in(s);
    const reference ref(in, NONE);
    in.run(in.stats);
    const double es = error_stats(in, ref);
    in.run(in.votes);
    const double ev = error_votes(in, ref);
    max_error_stats = std::max(max_error_stats, es);
    max_error_votes = std::max(max_error_votes, ev);
    if (!(es <= 1.0 && ev <= 1.0)) {
        printf("scoring %s: stats %.3g, votes %.3g times the tolerance\n", s.str().c_str(), es, ev);
        n_failed++;
    }
}

// a reference with a fault must be rejected
static void test_scoring_faults() {
    for (const int pool : { LLAMA_SNAPKV_POOLING_AVG, LLAMA_SNAPKV_POOLING_NOSINK }) {
        const shape s = { GGML_TYPE_F16, 64, 200, 9, 2, 3, 8.0f, true, 5, pool, LLAMA_SNAPKV_AGGREGATION_SUM, 0.25f };
        scoring in(s);
        in.run(in.stats);
        in.run(in.votes);
        for (const fault f : { NONE, CAUSAL, SOFTCAP, SINKS }) {
            CHECK((error_stats(in, reference(in, f)) <= 1.0) == (f == NONE));
        }
        for (const fault f : { NONE, CAUSAL, SOFTCAP, SINKS, POOLING, REDUCE, MEAN, WINDOW, SHIFT, OWN }) {
            CHECK((error_votes(in, reference(in, f)) <= 1.0) == (f == NONE));
        }
    }
}

// what no device is asked to run
static void test_refused_scoring() {
    const shape s = { GGML_TYPE_F16, 64, 300, 16, 2, 4, 0.0f, false, 7, LLAMA_SNAPKV_POOLING_AVG, LLAMA_SNAPKV_AGGREGATION_SUM };
    {
        scoring in(s);
        CHECK(device_supports(in.stats) && device_supports(in.votes));

        in.k->type = GGML_TYPE_Q5_0;
        CHECK(!device_supports(in.stats) && !device_supports(in.votes));
    }
    {
        scoring in(s);
        in.q->ne[1] = 257;
        CHECK(!device_supports(in.stats) && !device_supports(in.votes));
    }
    {
        scoring in(s);
        in.q->ne[2] = 65 * in.k->ne[2];
        CHECK(!device_supports(in.stats));
    }
    {
        scoring in(s);
        in.q->ne[0] = in.k->ne[0] = 592;
        CHECK(!device_supports(in.stats));
        in.q->ne[0] = in.k->ne[0] = 72;
        CHECK(!device_supports(in.stats));
    }
    {
        scoring in(s);
        snapkv_op_params params;
        CHECK(snapkv_op_get_params(in.votes, &params));
        params.kernel_size = 129;
        memcpy((char *) in.votes->op_params + SNAPKV_OP_PARAMS_OFFSET, &params, sizeof(params));
        CHECK(!device_supports(in.votes));
        params.magic++;
        memcpy((char *) in.votes->op_params + SNAPKV_OP_PARAMS_OFFSET, &params, sizeof(params));
        CHECK(!device_supports(in.votes)); // somebody else's custom op
    }
}

// what a program ends with, and its exit code
static int report() {
    printf("largest error in units of the tolerance: stats %.2f, votes %.2f\n", max_error_stats, max_error_votes);
    printf("%s\n", n_failed ? "FAILED" : "passed");
    return n_failed != 0;
}
