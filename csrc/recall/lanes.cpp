#include "recall/lanes.h"

#include "ops/cpu-math.h"
#include "ops/snapkv-op.h"

#include <algorithm>
#include <cmath>

#ifdef SNAPKV_AVX2
#include <immintrin.h>
#endif

static constexpr int NL = llama_snapkv_lanes::WIDTH;
static constexpr int NK = 8;      // keys at once: NK*NL sums are eight registers of AVX2
static constexpr int64_t PART = 64; // keys whose shares are added in float; parts in double

//
// rows in F32
//

#ifdef SNAPKV_AVX2
static bool has_f16c() {
    static const bool res = has_avx2() && __builtin_cpu_supports("f16c");
    return res;
}

__attribute__((target("avx,f16c"))) static void load_f16(const uint8_t * row, int64_t n, float * out) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) (row + 2 * i))));
    }
    for (; i < n; ++i) {
        out[i] = from_f16(((const uint16_t *) row)[i]);
    }
}
#endif

static void load(ggml_type type, const uint8_t * row, int64_t n, float * out) {
    if (type == GGML_TYPE_F32) {
        memcpy(out, row, n * sizeof(float)); // has no to_float
        return;
    }
    if (type != GGML_TYPE_F16) {
        ggml_get_type_traits(type)->to_float(row, out, n);
        return;
    }
#ifdef SNAPKV_AVX2
    if (has_f16c()) {
        load_f16(row, n, out);
        return;
    }
#endif
    for (int64_t i = 0; i < n; ++i) {
        out[i] = from_f16(((const uint16_t *) row)[i]);
    }
}

//
// kernels, for each instruction set
//

// a vector of lanes: compilers do not find it in arrays of this size by themselves
#if defined(__GNUC__) || defined(__clang__)
typedef float lanes_t __attribute__((vector_size(NL * sizeof(float)), aligned(sizeof(float))));
#else
struct lanes_t {
    float x[NL];
    float & operator[](int l) { return x[l]; }
    lanes_t operator*(float a) const {
        lanes_t res = *this;
        for (float & v : res.x) {
            v *= a;
        }
        return res;
    }
    lanes_t & operator+=(const lanes_t & other) {
        for (int l = 0; l < NL; ++l) {
            x[l] += other.x[l];
        }
        return *this;
    }
};
#endif

// keys: [head_dim, NK]; q: [n, head_dim], from a group of lanes on
BODY void products(const float * q, int64_t n, int64_t head_dim, const float * keys, float * out) {
    lanes_t acc[NK] = {};
    for (int64_t d = 0; d < head_dim; ++d) {
        const lanes_t x = *(const lanes_t *) (q + d * n);
        for (int c = 0; c < NK; ++c) {
            acc[c] += x * keys[c * head_dim + d];
        }
    }
    for (int c = 0; c < NK; ++c) {
        for (int l = 0; l < NL; ++l) {
            out[c * n + l] = acc[c][l];
        }
    }
}

BODY void max_of(const float * logits, int64_t n_keys, int64_t n, float * max) {
    for (int64_t j = 0; j < n_keys; ++j) {
        for (int64_t l = 0; l < n; ++l) {
            max[l] = max[l] > logits[j * n + l] ? max[l] : logits[j * n + l];
        }
    }
}

BODY void exp_of(float * logits, int64_t n_keys, int64_t n, const float * max, double weight, double * sum) {
    for (int64_t l0 = 0; l0 < n; l0 += NL) {
        for (int64_t j0 = 0; j0 < n_keys; j0 += PART) {
            float part[NL] = {};
            for (int64_t j = j0; j < j0 + PART && j < n_keys; ++j) {
                float * e = logits + j * n + l0;
                for (int l = 0; l < NL; ++l) {
                    e[l] = exp_f32(e[l] - max[l0 + l]);
                    part[l] += e[l];
                }
            }
            for (int l = 0; l < NL; ++l) {
                sum[l0 + l] += weight * part[l];
            }
        }
    }
}

BODY void range_of(const float * row, int64_t n, float * sum, float * min, float * max) {
    for (int64_t i = 0; i < n; ++i) {
        sum[i] += row[i];
        min[i] = min[i] < row[i] ? min[i] : row[i];
        max[i] = max[i] > row[i] ? max[i] : row[i];
    }
}

#ifdef SNAPKV_AVX2
TARGET_AVX2 static void products_avx2(const float * q, int64_t n, int64_t head_dim, const float * keys, float * out) {
    products(q, n, head_dim, keys, out);
}

TARGET_AVX2 static void max_of_avx2(const float * logits, int64_t n_keys, int64_t n, float * max) {
    max_of(logits, n_keys, n, max);
}

TARGET_AVX2 static void exp_of_avx2(float * logits, int64_t n_keys, int64_t n, const float * max, double weight, double * sum) {
    exp_of(logits, n_keys, n, max, weight, sum);
}

TARGET_AVX2 static void range_of_avx2(const float * row, int64_t n, float * sum, float * min, float * max) {
    range_of(row, n, sum, min, max);
}
#define DISPATCH(name, ...) has_avx2() ? name##_avx2(__VA_ARGS__) : name(__VA_ARGS__)
#else
#define DISPATCH(name, ...) name(__VA_ARGS__)
#endif

//
// lanes
//

llama_snapkv_lanes::llama_snapkv_lanes(const float * given, int64_t head_dim, int64_t n_queries, int64_t n_head, float scale, float softcap) :
    head_dim(head_dim), n_queries(n_queries), n_head(n_head), n(GGML_PAD(n_queries * n_head, NL)), softcap(softcap), q(n * head_dim), magnitudes(n * head_dim) {
    GGML_ASSERT(head_dim <= SNAPKV_OP_MAX_HEAD_DIM);
    for (int64_t l = 0; l < n_queries * n_head; ++l) {
        for (int64_t d = 0; d < head_dim; ++d) {
            q[d * n + l] = given[l * head_dim + d] * scale;
            magnitudes[d * n + l] = std::fabs(q[d * n + l]);
        }
    }
}

void llama_snapkv_lanes::multiply(const float * by, ggml_type type, const uint8_t * keys, size_t stride, int64_t n_keys, float * out) const {
    float loaded[NK * SNAPKV_OP_MAX_HEAD_DIM] = {};
    const size_t row = ggml_row_size(type, head_dim);
    for (int64_t j = 0; j < n_keys; j += NK) {
        for (int64_t c = 0; c < NK && j + c < n_keys; ++c) {
            const uint8_t * key = keys + (j + c) * stride;
            // the next ones: a head's keys lie apart, where the processor does not look ahead itself
            for (size_t at = 0; j + c + NK < n_keys && at < row; at += 64) {
                PREFETCH(key + NK * stride + at);
            }
            load(type, key, head_dim, loaded + c * head_dim);
        }
        for (int64_t l = 0; l < n; l += NL) {
            DISPATCH(products, by + l, n, head_dim, loaded, out + j * n + l);
        }
    }
}

void llama_snapkv_lanes::cap(float * logits, int64_t n_keys) const {
    for (int64_t i = 0; softcap != 0.0f && i < n_keys * n; ++i) {
        logits[i] = softcap * tanh_f32(logits[i] / softcap);
    }
}

void llama_snapkv_lanes::logits(ggml_type type, const uint8_t * keys, size_t stride, int64_t n_keys, float * out) const {
    multiply(q.data(), type, keys, stride, n_keys, out);
    cap(out, n_keys);
}

void llama_snapkv_lanes::logits_of_stretches(const ggml_fp16_t * stretches, int64_t n_stretches, float * of_mean, float * of_best) const {
    const size_t stride = 2 * head_dim * sizeof(ggml_fp16_t);
    multiply(q.data(), GGML_TYPE_F16, (const uint8_t *) stretches, stride, n_stretches, of_mean);
    multiply(magnitudes.data(), GGML_TYPE_F16, (const uint8_t *) (stretches + head_dim), stride, n_stretches, of_best);
    for (int64_t i = 0; i < n_stretches * n; ++i) {
        of_best[i] += of_mean[i];
    }
    cap(of_mean, n_stretches);
    cap(of_best, n_stretches);
}

void llama_snapkv_lanes::max(const float * logits, int64_t n_keys, float * max) const {
    DISPATCH(max_of, logits, n_keys, n, max);
}

void llama_snapkv_lanes::exp(float * logits, int64_t n_keys, const float * max, double weight, double * sum) const {
    DISPATCH(exp_of, logits, n_keys, n, max, weight, sum);
}

void llama_snapkv_lanes::votes(const float * exps, int64_t n_keys, const double * sum, llama_snapkv_aggregation aggregation, float * out) const {
    std::vector<float> share(n);
    for (int64_t l = 0; l < n_queries * n_head; ++l) {
        share[l] = (float) (1.0 / (sum[l] * n_head));
    }
    for (int64_t j = 0; j < n_keys; ++j) {
        const float * e = exps + j * n;
        float total = 0.0f;
        for (int64_t h = 0; h < n_head; ++h) {
            float joined = 0.0f;
            for (int64_t l = h * n_queries; l < (h + 1) * n_queries; ++l) {
                const float vote = e[l] * share[l];
                joined = aggregation == LLAMA_SNAPKV_AGGREGATION_MAX ? std::max(joined, vote) : joined + vote;
            }
            total += joined;
        }
        out[j] = total;
    }
}

//
// stretches
//

llama_snapkv_stretch::llama_snapkv_stretch(int64_t n) :
    n(n), row(n), sum(n), min(n), max(n) {}

void llama_snapkv_stretch::begin() {
    count = 0;
    std::fill(sum.begin(), sum.end(), 0.0f);
    std::fill(min.begin(), min.end(), INFINITY);
    std::fill(max.begin(), max.end(), -INFINITY);
}

void llama_snapkv_stretch::add(ggml_type type, const uint8_t * rows, size_t stride, int64_t n_rows) {
    count += n_rows;
    for (int64_t j = 0; j < n_rows; ++j) {
        load(type, rows + j * stride, n, row.data());
        DISPATCH(range_of, row.data(), n, sum.data(), min.data(), max.data());
    }
}

void llama_snapkv_stretch::write(int64_t first, int64_t n_here, ggml_fp16_t * out) const {
    for (int64_t i = 0; i < n_here; ++i) {
        out[i] = ggml_fp32_to_fp16(sum[first + i] / count);
        out[n_here + i] = ggml_fp32_to_fp16(0.25f * (max[first + i] - min[first + i]));
    }
}
