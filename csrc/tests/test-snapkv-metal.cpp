// The Metal side of the fused ops without Metal: snapkv.metal is compiled as C++ (tests/metal/), snapkv-metal.cpp runs as it
// is, on a stand-in for upstream's Metal functions that runs what it encodes. Results are held against plain double loops.
// Untested by this: the Metal compiler, its fast math, the hardware.
//
//     test-snapkv-metal [--threads]    threads of the operating system instead of fibers, fewer cases (for -fsanitize=thread)

#include "ggml-backend.h"
#include "ggml-cpp.h"

#include "snapkv.h"
#include "ops/snapkv-op.h"

// the unit under test
#include "ops/metal/snapkv-metal.cpp"

#include "metal/metal-backend.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>

static_assert((int) SNAPKV_METAL_POOLING_AVG == LLAMA_SNAPKV_POOLING_AVG && (int) SNAPKV_METAL_POOLING_MAX == LLAMA_SNAPKV_POOLING_MAX &&
                (int) SNAPKV_METAL_POOLING_NOSINK == LLAMA_SNAPKV_POOLING_NOSINK && AGGREGATION_MAX == LLAMA_SNAPKV_AGGREGATION_MAX,
        "csrc/metal cannot include snapkv.h");

//
// tensors in one buffer, and an op on them
//

struct tensors {
    ggml_context_ptr ctx;
    ggml_backend_buffer_ptr buffer;

    tensors() : ctx(ggml_init({ 32 * ggml_tensor_overhead(), nullptr, true })) {}

    void alloc() {
        buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), ggml_backend_cpu_buffer_type()));
        ggml_backend_buffer_clear(buffer.get(), 0xff); // NaN, so that what is not written shows
    }

    // runs a node; nothing but its result may change
    void run(ggml_tensor * node, ggml_metal_device_t dev = device(0)) {
        char * base = (char *) ggml_backend_buffer_get_base(buffer.get());
        const std::vector<char> before(base, base + ggml_backend_buffer_get_size(buffer.get()));

        CHECK(snapkv_metal_supports_op(dev, node));
        ggml_metal_encoder enc;
        snapkv_metal_encode(dev, &enc, node);

        const size_t lo = (char *) node->data - base;
        const size_t hi = lo + ggml_nbytes(node);
        CHECK(memcmp(before.data(), base, lo) == 0 && memcmp(before.data() + hi, base + hi, before.size() - hi) == 0);
    }
};

static std::mt19937 rng(42);

static float gauss() {
    static std::normal_distribution<float> dist;
    return dist(rng);
}

static int pick(int lo, int hi) {
    return std::uniform_int_distribution<int>(lo, hi)(rng);
}

static void fill(ggml_tensor * t, float scale) {
    std::vector<float> x(ggml_nelements(t));
    for (float & v : x) {
        v = scale * gauss();
    }
    switch (t->type) {
        case GGML_TYPE_F32: memcpy(t->data, x.data(), ggml_nbytes(t)); break;
        case GGML_TYPE_F16: ggml_fp32_to_fp16_row(x.data(), (ggml_fp16_t *) t->data, x.size()); break;
        case GGML_TYPE_BF16: ggml_fp32_to_bf16_row(x.data(), (ggml_bf16_t *) t->data, x.size()); break;
        default: ggml_quantize_chunk(t->type, x.data(), t->data, 0, ggml_nrows(t), t->ne[0], nullptr); break;
    }
}

static std::vector<float> row_of(const ggml_tensor * t, int64_t i1, int64_t i2) {
    std::vector<float> res(t->ne[0]);
    const char * src = (const char *) t->data + i1 * t->nb[1] + i2 * t->nb[2];
    if (t->type == GGML_TYPE_F32) {
        memcpy(res.data(), src, res.size() * sizeof(float));
    } else {
        ggml_get_type_traits(t->type)->to_float(src, res.data(), res.size());
    }
    return res;
}

//
// scoring
//

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
        snprintf(buf, sizeof(buf), "%s d=%d n=%d w=%d kv=%d g=%d cap=%g sinks=%d kernel=%d pool=%d reduce=%d own=%g threads=%d", ggml_type_name(type), head_dim, n, w,
                n_head_kv, g, softcap, sinks, kernel, pool, reduce, own, device_max_threads);
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

static double max_error_stats = 0.0; // of all cases
static double max_error_votes = 0.0;

// in units of what float arithmetic may do; beyond 1 is a failure
static double error_stats(const scoring & in, const reference & ref) {
    const float * got = (const float *) in.stats->data;
    double res = 0.0;
    for (size_t i = 0; i < ref.stats.size(); i += 2) {
        const double m = std::fabs(got[i] - ref.stats[i]) / 1e-5;
        const double lse = std::fabs(got[i] + std::log((double) got[i + 1]) - ref.stats[i] - std::log(ref.stats[i + 1])) / 1e-5;
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

//
// selection
//

struct selection : tensors {
    ggml_tensor * votes;
    ggml_tensor * ids;
    int n, w, n_head_kv, n_kept, n_sink;

    selection(int n, int w, int n_head_kv, int n_kept, int n_sink) : n(n), w(w), n_head_kv(n_head_kv), n_kept(n_kept), n_sink(std::min(n_sink, n_kept)) {
        votes = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, n, n_head_kv, 2);
        ids = snapkv_op_select(ctx.get(), votes, w, n_kept, n_sink);
        alloc();
        for (int64_t i = 0; i < ggml_nelements(votes); ++i) {
            ((float *) votes->data)[i] = std::fabs(gauss());
        }
    }

    float * pooled(int h) { return (float *) votes->data + (size_t) h * n; }
    float * mass(int h) { return (float *) votes->data + (size_t) (n_head_kv + h) * n; }

    // by a stable sort: equal votes stay in the order of positions
    std::vector<int32_t> expected(int h, bool low_first = true) {
        const float * v = pooled(h);
        std::vector<int32_t> res(n - w);
        std::iota(res.begin(), res.end(), 0);
        if (!low_first) {
            std::reverse(res.begin(), res.end());
        }
        std::stable_sort(res.begin(), res.end(), [&](int32_t a, int32_t b) {
            if ((a < n_sink) != (b < n_sink)) {
                return a < n_sink;
            }
            return !std::isnan(v[a]) && (std::isnan(v[b]) || v[a] > v[b]);
        });
        res.resize(n_kept);
        std::sort(res.begin(), res.end());
        return res;
    }

    bool ids_are(int h, const std::vector<int32_t> & want) { return std::equal(want.begin(), want.end(), (int32_t *) ids->data + (size_t) h * (n_kept + 1)); }

    void check() {
        run(ids);
        for (int h = 0; h < n_head_kv; ++h) {
            const std::vector<int32_t> want = expected(h);
            double held = 0.0;
            double all = 0.0;
            for (int j = 0; j < n; ++j) {
                all += mass(h)[j];
                held += j >= n - w ? mass(h)[j] : 0.0;
            }
            for (const int32_t id : want) {
                held += mass(h)[id];
            }
            float coverage;
            memcpy(&coverage, (int32_t *) ids->data + (size_t) h * (n_kept + 1) + n_kept, sizeof(coverage));
            const bool same = ids_are(h, want);
            const bool covers = coverage >= 0.0f && coverage <= 1.0f && std::fabs(coverage - (all > 0.0 ? held / all : 1.0)) < 1e-5;
            if (!same || !covers) {
                printf("selection n=%d w=%d kept=%d sinks=%d head %d threads=%d: %s, coverage %g\n", n, w, n_kept, n_sink, h, device_max_threads,
                        same ? "ids right" : "ids wrong", coverage);
                n_failed++;
            }
        }
    }
};

static void test_select(int n_cases) {
    const float special[] = { 0.0f, -0.0f, 1.0f, -1.0f, NAN, -NAN, INFINITY, 1e-42f, -1e-42f, 3e38f };

    for (int c = 0; c < n_cases; ++c) {
        const int sizes[] = { 1, 2, 31, 33, 64, 255, 1023, 1025, 3000 };
        const int n = sizes[pick(0, 8)];
        const int w = c % 5 == 0 ? n : pick(1, std::min(n, 256));
        const int n_kept = c % 3 == 0 ? n - w : pick(0, n - w);
        selection s(n, w, pick(1, 3), n_kept, c % 8 >= 4 ? pick(0, n) : 0);
        for (int h = 0; h < s.n_head_kv; ++h) {
            for (int j = 0; j < n; ++j) {
                switch (c % 4) {
                    case 0: s.pooled(h)[j] = (float) pick(0, 3); break; // ties
                    case 1: s.pooled(h)[j] = special[pick(0, 9)]; break;
                    case 2: s.pooled(h)[j] = std::exp(6.0f * gauss()); break;
                    default: break;
                }
                if (c % 7 == 0) {
                    s.mass(h)[j] = 0.0f;
                }
            }
        }
        s.check();
    }

    // zeros of either sign are one value
    selection zeros(100, 10, 1, 30, 0);
    for (int j = 0; j < 100; ++j) {
        zeros.pooled(0)[j] = j % 3 ? 0.0f : -0.0f;
    }
    zeros.check();

    // the comparison sees which of two equal votes is kept, and an id that is one off
    selection s(100, 10, 1, 30, 0);
    for (int j = 0; j < 100; ++j) {
        s.pooled(0)[j] = (float) (j % 2);
    }
    s.check();
    CHECK(!s.ids_are(0, s.expected(0, false)));
    std::vector<int32_t> off = s.expected(0);
    off.back()++;
    CHECK(!s.ids_are(0, off));
}

//
// eviction
//

static void test_evict(ggml_type type, int head_dim, int n_head_kv, int n_cells, int n_kept, int n_window, int row0) {
    const int dst0 = pick(0, 3); // first row that is written
    tensors t;
    ggml_tensor * src = ggml_new_tensor_2d(t.ctx.get(), type, head_dim * n_head_kv, n_cells);
    ggml_tensor * cache = ggml_new_tensor_2d(t.ctx.get(), type, head_dim * n_head_kv, dst0 + n_kept + n_window + 2);
    ggml_tensor * dst = ggml_view_2d(t.ctx.get(), cache, cache->ne[0], n_kept + n_window, cache->nb[1], dst0 * cache->nb[1]);
    ggml_tensor * ids = ggml_new_tensor_2d(t.ctx.get(), GGML_TYPE_I32, n_kept + 1, n_head_kv);
    ggml_tensor * node = snapkv_op_evict(t.ctx.get(), dst, src, ids, n_head_kv, row0);
    t.alloc();

    for (size_t i = 0; i < ggml_nbytes(src); ++i) {
        ((uint8_t *) src->data)[i] = (uint8_t) rng();
    }
    for (int64_t i = 0; i < ggml_nelements(ids); ++i) {
        ((int32_t *) ids->data)[i] = pick(0, n_cells - 1);
    }
    t.run(node);

    const size_t bytes = ggml_row_size(type, head_dim);
    bool same = true;
    bool control = true; // the wrong head's ids
    for (int h = 0; h < n_head_kv; ++h) {
        for (int i = 0; i < n_kept + n_window; ++i) {
            auto from = [&](int head) { return i < n_kept ? ((int32_t *) ids->data)[head * (n_kept + 1) + i] : row0 + i - n_kept; };
            const char * got = (char *) dst->data + i * dst->nb[1] + h * bytes;
            same = same && memcmp(got, (char *) src->data + from(h) * src->nb[1] + h * bytes, bytes) == 0;
            control = control && memcmp(got, (char *) src->data + from((h + 1) % n_head_kv) * src->nb[1] + h * bytes, bytes) == 0;
        }
    }
    CHECK(same);
    CHECK(n_kept < 8 || n_head_kv == 1 || !control);
}

//
// what the device is not asked to run
//

static void test_supports() {
    const shape s = { GGML_TYPE_F16, 64, 300, 16, 2, 4, 0.0f, false, 7, LLAMA_SNAPKV_POOLING_AVG, LLAMA_SNAPKV_AGGREGATION_SUM };
    auto supports = [](const ggml_tensor * node) { return snapkv_metal_supports_op(device(0), node); };
    {
        scoring in(s);
        CHECK(supports(in.stats) && supports(in.votes));

        in.k->type = GGML_TYPE_Q5_0;
        CHECK(!supports(in.stats) && !supports(in.votes));
    }
    {
        scoring in(s);
        in.q->ne[1] = 257;
        CHECK(!supports(in.stats) && !supports(in.votes));
    }
    {
        scoring in(s);
        in.q->ne[2] = 65 * in.k->ne[2];
        CHECK(!supports(in.stats));
    }
    {
        scoring in(s);
        in.q->ne[0] = in.k->ne[0] = 592;
        CHECK(!supports(in.stats));
        in.q->ne[0] = in.k->ne[0] = 72;
        CHECK(!supports(in.stats));
    }
    {
        scoring in(s);
        snapkv_op_params params;
        CHECK(snapkv_op_get_params(in.votes, &params));
        params.kernel_size = 129;
        memcpy((char *) in.votes->op_params + SNAPKV_OP_PARAMS_OFFSET, &params, sizeof(params));
        CHECK(!supports(in.votes));
        params.magic++;
        memcpy((char *) in.votes->op_params + SNAPKV_OP_PARAMS_OFFSET, &params, sizeof(params));
        CHECK(!supports(in.votes)); // somebody else's custom op
    }
    {
        scoring in(s);
        const size_t memory = device_props.max_theadgroup_memory_size;
        device_props.max_theadgroup_memory_size = 8 * 1024;
        CHECK(!supports(in.stats) && !supports(in.votes));
        device_props.max_theadgroup_memory_size = memory;
    }
    {
        // kernels that do not compile: another backend's turn, and no second attempt
        scoring in(s);
        const int n = n_libraries;
        device_compiles = false;
        CHECK(!snapkv_metal_supports_op(device(1), in.stats) && !snapkv_metal_supports_op(device(1), in.votes));
        device_compiles = true;
        CHECK(!snapkv_metal_supports_op(device(1), in.stats));
        CHECK(n_libraries == n + 1);
    }
}

int main(int argc, char ** argv) {
    const bool threads = argc > 1 && strcmp(argv[1], "--threads") == 0;
    device_threads = metal_shim::make_group(threads);
    device_props.max_theadgroup_memory_size = 32 * 1024;

    const ggml_type types[] = { GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_F32, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 };
    const int AVG = LLAMA_SNAPKV_POOLING_AVG, MAX = LLAMA_SNAPKV_POOLING_MAX;
    const int SUM = LLAMA_SNAPKV_AGGREGATION_SUM, TOP = LLAMA_SNAPKV_AGGREGATION_MAX;

    if (threads) {
        device_max_threads = 64;
        test_scoring({ GGML_TYPE_F16, 64, 70, 5, 2, 3, 0.0f, true, 5, AVG, SUM });
        test_scoring({ GGML_TYPE_Q8_0, 256, 40, 6, 1, 2, 10.0f, false, 3, MAX, TOP });
        test_select(12);
        test_evict(GGML_TYPE_F16, 64, 2, 20, 9, 4, 16);
        printf("%s\n", n_failed ? "FAILED" : "passed");
        return n_failed != 0;
    }

    test_supports();
    test_scoring_faults();

    // sizes around the ends of tiles, ranges and blocks of columns
    for (const int n : { 32, 33, 500, 1023, 1024, 1025, 2049 }) {
        device_max_threads = n % 2 ? 256 : 64;
        test_scoring({ GGML_TYPE_F16, 64, n, 32, 1, 2, 0.0f, false, 7, AVG, SUM });
    }
    // the limits, and one key only
    device_max_threads = 256;
    test_scoring({ GGML_TYPE_F16, 64, 1, 1, 1, 1, 0.0f, false, 1, AVG, SUM });
    test_scoring({ GGML_TYPE_F16, 256, 280, 256, 1, 16, 0.0f, true, 127, AVG, TOP });
    test_scoring({ GGML_TYPE_Q4_0, 128, 256, 256, 2, 1, 30.0f, false, 127, MAX, SUM });
    test_scoring({ GGML_TYPE_F32, 16, 257, 256, 1, 3, 0.0f, false, 3, MAX, TOP });
    test_scoring({ GGML_TYPE_F16, 512, 280, 256, 1, 8, 0.0f, false, 31, AVG, SUM });
    test_scoring({ GGML_TYPE_F16, 64, 100, 8, 1, 64, 0.0f, false, 7, MAX, TOP });

    for (int c = 0; c < 60; ++c) {
        const int dims[] = { 64, 96, 128, 256, 512, 576, 80, 112 };
        const int maxima[] = { 32, 64, 96, 256, 300 };
        shape s;
        s.type = types[c % 5];
        s.head_dim = dims[pick(0, ggml_is_quantized(s.type) ? 5 : 7)];
        s.g = c % 4 == 0 ? pick(1, 16) : pick(1, 4);
        s.w = c % 6 == 0 ? pick(1, 100) : pick(1, 20);
        s.n_head_kv = pick(1, 2);
        s.n = s.w + (c % 7 == 0 ? pick(0, 2) : pick(3, 400));
        s.softcap = c % 3 == 0 ? 20.0f : 0.0f;
        s.sinks = pick(0, 1);
        s.kernel = c % 8 == 0 ? 127 : 2 * pick(0, 6) + 1;
        s.pool = pick(0, LLAMA_SNAPKV_POOLING_NOSINK);
        s.reduce = pick(0, 1);
        s.own = 0.25f * (float) pick(0, 2);
        device_max_threads = maxima[pick(0, 4)];
        test_scoring(s);
    }

    for (const int n : { 32, 64, 256, 1024 }) {
        device_max_threads = n;
        test_select(40);
    }

    device_max_threads = 256;
    for (const ggml_type type : types) {
        test_evict(type, 64, 3, 50, 17, 8, 42);
        test_evict(type, 128, 2, 300, 100, 32, 268);
        test_evict(type, 256, 1, 40, 0, 40, 0);
        test_evict(type, 512, 2, 60, 20, 8, 52);
        test_evict(type, 96, 4, 9, 9, 0, 9);
    }
    test_evict(GGML_TYPE_F16, 80, 5, 30, 12, 3, 20);  // units of 16 bytes
    test_evict(GGML_TYPE_Q8_0, 32, 3, 30, 12, 3, 20); // of 2

    printf("largest error in units of the tolerance: stats %.2f, votes %.2f\n", max_error_stats, max_error_votes);
    printf("%s\n", n_failed ? "FAILED" : "passed");
    return n_failed != 0;
}
