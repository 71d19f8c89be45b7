// Inputs for test-snapkv-ops, and what the ops should make of them: float64, written as plainly as ops/snapkv-op.h states it.
#pragma once

#include "snapkv.h"

#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

static const char * ops_pool_name(int pool) {
    switch (pool) {
        case LLAMA_SNAPKV_POOLING_AVG: return "avg";
        case LLAMA_SNAPKV_POOLING_MAX: return "maxpool";
        default: return "nosink";
    }
}

struct ops_case {
    ggml_type type_k = GGML_TYPE_F16;
    ggml_type type_v = GGML_TYPE_F16;
    int head_dim = 64;
    int n_head_kv = 2;
    int g = 2; // query heads of a KV head
    int w = 8;
    int64_t n = 100;
    int n_kept = 30;
    int n_sink = 0;
    bool attn_sinks = false;
    float softcap = 0.0f;
    int kernel = 5;
    int pool = LLAMA_SNAPKV_POOLING_AVG;
    int reduce = LLAMA_SNAPKV_AGGREGATION_SUM;
    float own = 0.0f;
    bool strided = true;  // k is a view of a cache, else [head_dim, n, n_head_kv] of its own
    bool q_view = true; // q is a view of [head_dim, n_head, tokens], as a model computes it
    bool q_f16 = false;   // every element of q is an f16 number
    float sharp = 1.0f;   // standard deviation of the logits
    uint32_t seed = 1;

    float scale() const { return 1.0f / std::sqrt((float) head_dim); }
    int64_t m() const { return n - w; }
    double work() const { return (double) n * n_head_kv * g * w * head_dim; }

    std::string name() const {
        char buf[256];
        snprintf(buf, sizeof(buf), "k %s v %s d %d hkv %d g %d w %d n %lld kept %d sinks %d kernel %d %s %s own %g%s%s%s%s%s sharp %g seed %u",
                ggml_type_name(type_k), ggml_type_name(type_v), head_dim, n_head_kv, g, w, (long long) n, n_kept, n_sink, kernel,
                ops_pool_name(pool),
                reduce == LLAMA_SNAPKV_AGGREGATION_SUM ? "sum" : "max", own,
                attn_sinks ? " attn-sinks" : "", softcap != 0.0f ? " softcap" : "", strided ? " strided" : "", q_view ? " q-view" : "", q_f16 ? " q-f16" : "", sharp, seed);
        return buf;
    }
};

// roughly normal, cheap, and the same everywhere
struct ops_random {
    uint64_t state;

    explicit ops_random(uint64_t seed) :
        state(seed * 0x9e3779b97f4a7c15ull + 1) {}
    uint32_t next() {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        return (uint32_t) (state >> 32);
    }
    int below(int n) { return (int) (next() % (uint32_t) n); }
    float normal() {
        const uint32_t a = next();
        const uint32_t b = next();
        const int sum = (int) (a & 0xffff) + (int) (a >> 16) + (int) (b & 0xffff) + (int) (b >> 16);
        return ((float) sum / 65536.0f - 2.0f) * 1.7320508f;
    }
    template <typename T>
    T pick(std::initializer_list<T> list) { return list.begin()[below((int) list.size())]; }
};

struct ops_data {
    std::vector<float> q;       // [head_dim, w, n_head]
    std::vector<uint8_t> cache_k; // [head_dim*n_head_kv, n_cells]
    std::vector<uint8_t> cache_v;
    std::vector<float> k;       // the values of cache_k
    std::vector<float> sinks;   // [n_head]
    int64_t n_cells;
};

static float ops_round_f16(float x) {
    return ggml_fp16_to_fp32(ggml_fp32_to_fp16(x));
}

static std::vector<uint8_t> ops_encode(ggml_type type, const std::vector<float> & x) {
    std::vector<uint8_t> res(ggml_row_size(type, x.size()));
    if (type == GGML_TYPE_F32) {
        memcpy(res.data(), x.data(), res.size());
    } else {
        ggml_get_type_traits(type)->from_float_ref(x.data(), res.data(), x.size());
    }
    return res;
}

static ops_data ops_make_data(const ops_case & c) {
    ops_random rnd(c.seed);
    ops_data res;
    res.n_cells = c.n + 3;

    res.q.resize((size_t) c.head_dim * c.w * c.g * c.n_head_kv);
    for (auto & x : res.q) {
        x = rnd.normal() * c.sharp;
        x = c.q_f16 ? ops_round_f16(x) : x;
    }
    res.k.resize((size_t) c.head_dim * c.n_head_kv * res.n_cells);
    for (auto & x : res.k) {
        x = rnd.normal();
    }
    res.cache_v = ops_encode(c.type_v, res.k);
    for (auto & x : res.cache_v) {
        x ^= 0x55; // other bytes than k's
    }
    res.cache_k = ops_encode(c.type_k, res.k);
    if (c.type_k != GGML_TYPE_F32) {
        ggml_get_type_traits(c.type_k)->to_float(res.cache_k.data(), res.k.data(), res.k.size());
    }
    res.sinks.resize((size_t) c.g * c.n_head_kv);
    for (auto & x : res.sinks) {
        x = rnd.normal() * 2.0f + 2.0f;
    }
    return res;
}

// deliberate mistakes: a comparison that accepts one of them is worth nothing
enum ops_mistake {
    OPS_NONE,
    OPS_MASK_LATE,        // a row sees one key too many
    OPS_MASK_EARLY,       // or one too few
    OPS_GROUP_RULE,       // head h uses KV head h % n_head_kv
    OPS_NO_POOLING,
    OPS_POOL_SHIFTED,
    OPS_POOL_VALID_ONLY,  // borders divided by the valid count
    OPS_POOL_OVER_WINDOW, // the window's votes leak into the prefix's last positions
    OPS_OTHER_POOL,
    OPS_OTHER_REDUCE,
    OPS_NO_OWN,
    OPS_NO_SINKS,
    OPS_NO_SOFTCAP,
    OPS_SUM_OF_HEADS,
    OPS_N_MISTAKES,
};

struct ops_reference {
    std::vector<double> max, lse; // [w, n_head]
    std::vector<double> votes;    // [n, n_head_kv, 2]
};

static double ops_dot(const float * a, const float * b, int n) {
    double s[4] = {};
    for (int i = 0; i < n; i += 4) {
        for (int j = 0; j < 4; ++j) {
            s[j] += (double) a[i + j] * b[i + j];
        }
    }
    return s[0] + s[1] + s[2] + s[3];
}

// pooled votes of one query head, [m]. votes has n entries
static std::vector<double> ops_pool(const ops_case & c, const std::vector<double> & votes, ops_mistake mistake) {
    const int other = c.pool == LLAMA_SNAPKV_POOLING_AVG ? LLAMA_SNAPKV_POOLING_MAX : LLAMA_SNAPKV_POOLING_AVG;
    const int pool = mistake == OPS_OTHER_POOL ? other : c.pool;
    const int half = mistake == OPS_NO_POOLING ? 0 : c.kernel / 2;
    const int shift = mistake == OPS_POOL_SHIFTED ? 1 : 0;
    const int64_t end = mistake == OPS_POOL_OVER_WINDOW ? c.n : c.m();

    std::vector<double> res((size_t) c.m());
    for (int64_t j = 0; j < c.m(); ++j) {
        double sum = 0.0;
        double max = 0.0;
        int count = 0;
        for (int64_t i = j - half + shift; i <= j + half + shift; ++i) {
            if (i >= 0 && i < end) {
                sum += i == 0 && pool == LLAMA_SNAPKV_POOLING_NOSINK && half > 0 ? 0.0 : votes[i];
                max = std::max(max, votes[i]);
                count++;
            }
        }
        const int divisor = mistake == OPS_POOL_VALID_ONLY ? std::max(count, 1) : 2 * half + 1;
        res[j] = pool == LLAMA_SNAPKV_POOLING_MAX ? max : sum / divisor;
        res[j] += mistake == OPS_NO_OWN ? 0.0 : c.own * votes[j];
    }
    return res;
}

// f16: q and k are rounded to f16 first, as a backend does that multiplies in f16
static ops_reference ops_compute_reference(const ops_case & c, const ops_data & data, bool f16 = false, ops_mistake mistake = OPS_NONE) {
    std::vector<float> q = data.q;
    std::vector<float> k = data.k;
    if (f16) {
        for (auto * v : { &q, &k }) {
            for (auto & x : *v) {
                x = ops_round_f16(x);
            }
        }
    }
    const int n_head = c.g * c.n_head_kv;
    const int late = mistake == OPS_MASK_LATE ? 1 : mistake == OPS_MASK_EARLY ? -1
                                                                              : 0;
    const bool sum_rows = (c.reduce == LLAMA_SNAPKV_AGGREGATION_SUM) != (mistake == OPS_OTHER_REDUCE);

    ops_reference res;
    res.max.resize((size_t) n_head * c.w);
    res.lse.resize((size_t) n_head * c.w);
    res.votes.resize((size_t) c.n * c.n_head_kv * 2);

    std::vector<double> p((size_t) c.n);
    for (int h = 0; h < n_head; ++h) {
        const int of = h / c.g; // the KV head that votes are for
        const int kv = mistake == OPS_GROUP_RULE ? h % c.n_head_kv : of;
        std::vector<double> sum((size_t) c.n), max((size_t) c.n);
        for (int i = 0; i < c.w; ++i) {
            const int64_t last = std::min(c.n - 1, std::max<int64_t>(0, c.n - c.w + i + late));
            const bool sinks = c.attn_sinks && mistake != OPS_NO_SINKS;
            double m = sinks ? data.sinks[h] : -INFINITY;
            for (int64_t j = 0; j <= last; ++j) {
                double x = ops_dot(&q[((size_t) h * c.w + i) * c.head_dim], &k[((size_t) j * c.n_head_kv + kv) * c.head_dim], c.head_dim) * c.scale();
                if (c.softcap != 0.0f && mistake != OPS_NO_SOFTCAP) {
                    x = c.softcap * std::tanh(x / c.softcap);
                }
                p[j] = x;
                m = std::max(m, x);
            }
            double total = sinks ? std::exp(data.sinks[h] - m) : 0.0;
            for (int64_t j = 0; j <= last; ++j) {
                p[j] = std::exp(p[j] - m);
                total += p[j];
            }
            for (int64_t j = 0; j <= last; ++j) {
                sum[j] += p[j] / total;
                max[j] = std::max(max[j], p[j] / total);
            }
            res.max[(size_t) h * c.w + i] = m;
            res.lse[(size_t) h * c.w + i] = m + std::log(total);
        }
        const std::vector<double> pooled = ops_pool(c, sum_rows ? sum : max, mistake);
        const double share = mistake == OPS_SUM_OF_HEADS ? 1.0 : 1.0 / c.g;
        for (int64_t j = 0; j < c.n; ++j) {
            res.votes[(size_t) of * c.n + j] += j < c.m() ? pooled[j] * share : 0.0;
            res.votes[(size_t) (c.n_head_kv + of) * c.n + j] += sum[j] * share;
        }
    }
    return res;
}

// largest error, in units of what is allowed: more than 1 is wrong
static double ops_error_of_stats(const ops_reference & ref, const std::vector<float> & stats, double tolerance) {
    double worst = 0.0;
    for (size_t i = 0; i < ref.max.size(); ++i) {
        const double max = stats[2 * i];
        const double sum = stats[2 * i + 1];
        for (const double d : { max - ref.max[i], max + std::log(sum) - ref.lse[i] }) {
            worst = std::max(worst, std::isfinite(d) ? std::fabs(d) / tolerance : INFINITY); // p is e^-lse times as wrong
        }
    }
    return worst;
}

// what is allowed of a vote however small it is
static constexpr double OPS_SLACK = 1e-12;

static double ops_error_of_votes(const std::vector<double> & ref, const std::vector<float> & votes, double tolerance) {
    double worst = 0.0;
    for (size_t i = 0; i < ref.size(); ++i) {
        const double d = std::fabs(votes[i] - ref[i]) / (tolerance * std::fabs(ref[i]) + OPS_SLACK);
        worst = std::max(worst, std::isfinite(votes[i]) ? d : INFINITY);
    }
    return worst;
}

// a choice may differ from the reference's only where votes are equal up to the tolerance; 0 where it is the same
static double ops_error_of_ids(const double * votes, int64_t m, const std::vector<int32_t> & ids, int n_sink, double tolerance) {
    std::vector<bool> kept((size_t) m, false);
    double lowest = INFINITY;
    for (const int32_t i : ids) {
        kept[i] = true;
        lowest = i >= n_sink ? std::min(lowest, votes[i]) : lowest;
    }
    double highest = -INFINITY;
    for (int64_t j = n_sink; j < m; ++j) {
        highest = kept[j] ? highest : std::max(highest, votes[j]);
    }
    return highest > lowest ? (highest - lowest) / (2.0 * tolerance * highest + OPS_SLACK) : 0.0;
}
