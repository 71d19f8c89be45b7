#include "ops/cpu.h"

#include "snapkv.h"
#include "ops/cpu-math.h"
#include "ops/snapkv-op.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

// A product of a few query rows with a tile of transposed keys: the innermost loop runs over keys, so that it vectorises
// without reordering any sum. Bodies are inlined into one function for each instruction set; scratch is on the stack, so
// that nothing can run out of memory inside of a graph.
static constexpr int LANES = 8;
static constexpr int NK = 3 * LANES;      // keys in a tile
static constexpr int NR = 4;              // query rows at once: NR*NK sums are 12 registers of AVX2
static constexpr int MAX_ROWS = SNAPKV_OP_MAX_ROWS; // of one pass over K
static constexpr int SPAN = 24 * NK;      // keys of one task of VOTES, borders for the pooling included

// what both passes read
struct inputs {
    snapkv_op_params params;
    const ggml_tensor * q;
    const ggml_tensor * k;
    ggml_to_float_t to_float;
    size_t row_size; // bytes of a key
    int head_dim;
    int w;
    int g; // query heads of a KV head
    int64_t n;

    explicit inputs(const ggml_tensor * dst) :
        q(dst->src[0]), k(dst->src[1]), to_float(ggml_get_type_traits(k->type)->to_float), row_size(ggml_row_size(k->type, k->ne[0])), head_dim((int) k->ne[0]), w((int) q->ne[1]), g((int) (q->ne[2] / k->ne[2])), n(k->ne[1]) {
        snapkv_op_get_params(dst, &params);
    }

    const float * query(int64_t head, int64_t row) const {
        return (const float *) ((const char *) q->data + head * q->nb[2] + row * q->nb[1]);
    }
    // keys that a row sees
    int64_t visible(int64_t row) const { return n - w + row + 1; }
};

// keys j0 .. j0 + nk as F32 [head_dim][NK], the missing ones zero
BODY void load_keys(const inputs & in, int64_t head_kv, int64_t j0, int nk, float * kt) {
    float row[SNAPKV_OP_MAX_HEAD_DIM];
    for (int c = 0; c < NK; ++c) {
        const char * src = (const char *) in.k->data + head_kv * in.k->nb[2] + (j0 + c) * in.k->nb[1];
        if (j0 + c + NK < in.n) {
            // the next tile: a head's rows lie apart in a cache, where the processor does not look ahead itself
            for (size_t at = 0; at < in.row_size; at += 64) {
                PREFETCH(src + NK * in.k->nb[1] + at);
            }
        }
        if (c >= nk) {
            memset(row, 0, sizeof(row));
        } else if (in.k->type == GGML_TYPE_F16) {
            for (int i = 0; i < in.head_dim; ++i) {
                row[i] = from_f16(((const uint16_t *) src)[i]);
            }
        } else if (in.k->type == GGML_TYPE_F32) {
            memcpy(row, src, in.head_dim * sizeof(float)); // has no to_float
        } else {
            in.to_float(src, row, in.head_dim);
        }
        for (int i = 0; i < in.head_dim; ++i) {
            kt[i * NK + c] = row[i];
        }
    }
}

// logits of rows row .. row + NR of a query head against a tile; beyond row w - 1, that row again
BODY void logits(const inputs & in, int64_t head, int row, const float * kt, float (*out)[NK]) {
    const float * q[NR];
    for (int r = 0; r < NR; ++r) {
        q[r] = in.query(head, std::min(row + r, in.w - 1));
    }
    float acc[NR][NK];
    for (int r = 0; r < NR; ++r) {
        for (int c = 0; c < NK; ++c) {
            acc[r][c] = q[r][0] * kt[c];
        }
    }
    for (int i = 1; i < in.head_dim; ++i) {
        for (int r = 0; r < NR; ++r) {
            const float qi = q[r][i];
            for (int c = 0; c < NK; ++c) {
                acc[r][c] += qi * kt[i * NK + c];
            }
        }
    }
    if (in.params.softcap == 0.0f) {
        for (int r = 0; r < NR; ++r) {
            for (int c = 0; c < NK; ++c) {
                out[r][c] = acc[r][c] * in.params.scale;
            }
        }
        return;
    }
    const float scale = in.params.scale / in.params.softcap;
    for (int r = 0; r < NR; ++r) {
        for (int c = 0; c < NK; ++c) {
            out[r][c] = in.params.softcap * tanh_f32(acc[r][c] * scale);
        }
    }
}

BODY float larger(float a, float b) {
    return a > b ? a : b;
}

// trees, the same for every row
static_assert(LANES == 8, "trees of 8");

BODY float sum_of_lanes(const float * x) {
    return ((x[0] + x[4]) + (x[1] + x[5])) + ((x[2] + x[6]) + (x[3] + x[7]));
}

BODY float max_of_tile(const float * x) {
    float a[LANES];
    for (int c = 0; c < LANES; ++c) {
        a[c] = larger(larger(x[c], x[c + LANES]), x[c + 2 * LANES]);
    }
    return larger(larger(larger(a[0], a[4]), larger(a[1], a[5])), larger(larger(a[2], a[6]), larger(a[3], a[7])));
}

//
// STATS: a thread owns rows, since threads cannot meet inside of an op. rows come in groups of NR
//

BODY void stats_groups(ggml_tensor * dst, const inputs & in, int64_t head_kv, int group0, int n_groups) {
    const int groups_per_head = (in.w + NR - 1) / NR;
    const ggml_tensor * sinks = dst->src[2];

    float max[MAX_ROWS / NR][NR];
    float sum[MAX_ROWS / NR][NR][LANES] = {}; // by lanes, so that they are added up only once
    for (int b = 0; b < n_groups; ++b) {
        const int64_t head = head_kv * in.g + (group0 + b) / groups_per_head;
        for (int r = 0; r < NR; ++r) {
            max[b][r] = sinks ? ((const float *) sinks->data)[head] : -INFINITY;
            sum[b][r][0] = sinks ? 1.0f : 0.0f;
        }
    }

    float kt[SNAPKV_OP_MAX_HEAD_DIM * NK];
    for (int64_t j0 = 0; j0 < in.n; j0 += NK) {
        load_keys(in, head_kv, j0, (int) std::min<int64_t>(NK, in.n - j0), kt);

        for (int b = 0; b < n_groups; ++b) {
            const int64_t head = head_kv * in.g + (group0 + b) / groups_per_head;
            const int row = (group0 + b) % groups_per_head * NR;

            float l[NR][NK];
            logits(in, head, row, kt, l);
            for (int r = 0; r < NR; ++r) {
                const int64_t n_visible = in.visible(row + r) - j0;
                if (n_visible <= 0) {
                    continue;
                }
                for (int c = (int) std::min<int64_t>(NK, n_visible); c < NK; ++c) {
                    l[r][c] = -INFINITY;
                }
                const float m = max_of_tile(l[r]);
                if (m > max[b][r]) {
                    const float factor = exp_f32(max[b][r] - m);
                    for (int c = 0; c < LANES; ++c) {
                        sum[b][r][c] *= factor;
                    }
                    max[b][r] = m;
                }
                float e[NK];
                for (int c = 0; c < NK; ++c) {
                    e[c] = exp_f32(l[r][c] - max[b][r]);
                }
                for (int c = 0; c < LANES; ++c) {
                    sum[b][r][c] += (e[c] + e[c + LANES]) + e[c + 2 * LANES];
                }
            }
        }
    }

    for (int b = 0; b < n_groups; ++b) {
        const int64_t head = head_kv * in.g + (group0 + b) / groups_per_head;
        const int row = (group0 + b) % groups_per_head * NR;
        for (int r = 0; r < NR && row + r < in.w; ++r) {
            float * out = (float *) dst->data + 2 * (head * in.w + row + r);
            out[0] = max[b][r];
            out[1] = sum_of_lanes(sum[b][r]);
        }
    }
}

BODY void stats_body(ggml_tensor * dst, int ith, int nth) {
    const inputs in(dst);
    const int64_t n_groups = (in.w + NR - 1) / NR * in.g; // of a KV head
    const int64_t total = n_groups * in.k->ne[2];

    const int64_t end = total * (ith + 1) / nth;
    for (int64_t i = total * ith / nth; i < end;) {
        const int64_t group0 = i % n_groups;
        const int64_t count = std::min({ n_groups - group0, end - i, (int64_t) MAX_ROWS / NR });
        stats_groups(dst, in, i / n_groups, (int) group0, (int) count);
        i += count;
    }
}

//
// VOTES: a thread owns ranges of keys of a KV head, and counts the neighbours that pooling needs again
//

BODY void votes_range(ggml_tensor * dst, const inputs & in, int64_t head_kv, int64_t begin, int64_t end) {
    const int kernel = in.params.kernel_size;
    const bool sum_rows = in.params.aggregation == LLAMA_SNAPKV_AGGREGATION_SUM;
    const int64_t m = in.n - in.w; // prefix
    const int64_t base = begin - kernel / 2; // key of column 0, may be negative
    const ggml_tensor * stats = dst->src[2];

    float votes[SNAPKV_OP_MAX_GROUP][SPAN];
    memset(votes, 0, in.g * sizeof(votes[0]));
    float mass[SPAN] = {};

    float kt[SNAPKV_OP_MAX_HEAD_DIM * NK];
    const int64_t last = std::min(base + SPAN, in.n);
    for (int64_t j0 = std::max<int64_t>(base, 0); j0 < last; j0 += NK) {
        const int nk = (int) std::min<int64_t>(NK, last - j0);
        load_keys(in, head_kv, j0, nk, kt);

        for (int h = 0; h < in.g; ++h) {
            const int64_t head = head_kv * in.g + h;
            float sum[NK] = {};
            float max[NK] = {};
            for (int row = 0; row < in.w; row += NR) {
                float l[NR][NK];
                logits(in, head, row, kt, l);
                for (int r = 0; r < NR && row + r < in.w; ++r) {
                    const float * st = (const float *) stats->data + 2 * (head * in.w + row + r);
                    const float inv = 1.0f / st[1];
                    float p[NK];
                    for (int c = 0; c < NK; ++c) {
                        p[c] = exp_f32(l[r][c] - st[0]) * inv;
                    }
                    for (int64_t c = std::max<int64_t>(0, in.visible(row + r) - j0); c < NK; ++c) {
                        p[c] = 0.0f;
                    }
                    for (int c = 0; c < NK; ++c) {
                        sum[c] += p[c];
                        max[c] = larger(p[c], max[c]);
                    }
                }
            }
            const float * vote = sum_rows ? sum : max;
            for (int c = 0; c < nk; ++c) {
                votes[h][j0 - base + c] = j0 + c < m ? vote[c] : 0.0f;
                mass[j0 - base + c] += sum[c];
            }
        }
    }

    float * out = (float *) dst->data + head_kv * in.n;
    float * out_mass = out + in.n * in.k->ne[2];
    const int n_out = (int) (end - begin);
    const float divisor = (float) kernel;
    float pooled[SPAN] = {};
    for (int h = 0; h < in.g; ++h) {
        float own[SPAN];
        std::copy_n(votes[h] + kernel / 2, n_out, own);
        if (in.params.pooling == LLAMA_SNAPKV_POOLING_NOSINK && base <= 0) {
            votes[h][-base] = 0.0f;
        }
        float sum[SPAN] = {};
        float top[SPAN] = {};
        for (int t = 0; t < kernel; ++t) {
            const float * x = votes[h] + t;
            for (int c = 0; c < n_out; ++c) {
                sum[c] += x[c];
                top[c] = larger(x[c], top[c]);
            }
        }
        for (int c = 0; c < n_out; ++c) {
            pooled[c] += (in.params.pooling == LLAMA_SNAPKV_POOLING_MAX ? top[c] : sum[c] / divisor) + in.params.self_weight * own[c];
        }
    }
    for (int c = 0; c < n_out; ++c) {
        out[begin + c] = begin + c < m ? pooled[c] / (float) in.g : 0.0f;
        out_mass[begin + c] = mass[c + kernel / 2] / (float) in.g;
    }
}

BODY void votes_body(ggml_tensor * dst, int ith, int nth) {
    const inputs in(dst);
    const int64_t step = SPAN - (in.params.kernel_size - 1);
    const int64_t n_ranges = (in.n + step - 1) / step;
    for (int64_t i = ith; i < n_ranges * in.k->ne[2]; i += nth) {
        const int64_t begin = i % n_ranges * step;
        votes_range(dst, in, i / n_ranges, begin, std::min(begin + step, in.n));
    }
}

#ifdef SNAPKV_AVX2
TARGET_AVX2 static void stats_avx2(ggml_tensor * dst, int ith, int nth) {
    stats_body(dst, ith, nth);
}

TARGET_AVX2 static void votes_avx2(ggml_tensor * dst, int ith, int nth) {
    votes_body(dst, ith, nth);
}
#endif

void snapkv_op_cpu_stats(ggml_tensor * dst, int ith, int nth, void * /*userdata*/) {
#ifdef SNAPKV_AVX2
    if (has_avx2()) {
        stats_avx2(dst, ith, nth);
        return;
    }
#endif
    stats_body(dst, ith, nth);
}

void snapkv_op_cpu_votes(ggml_tensor * dst, int ith, int nth, void * /*userdata*/) {
#ifdef SNAPKV_AVX2
    if (has_avx2()) {
        votes_avx2(dst, ith, nth);
        return;
    }
#endif
    votes_body(dst, ith, nth);
}
