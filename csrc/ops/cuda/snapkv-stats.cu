// STATS: the online softmax of each range of keys, then a merge of the ranges.
#include "snapkv-logits.cuh"

static constexpr float LN2 = 0.6931471805599453f;
static constexpr float NO_MAX = -1e30f; // below any logit, and finite: a row that has seen no key yet gives no NaN

// maximum (base 2) and sum of a row, over the keys seen so far
struct row_stats {
    float m = NO_MAX;
    float l = 0.0f;
};

static __device__ __forceinline__ row_stats merge(row_stats a, row_stats b) {
    row_stats c;
    c.m = fmaxf(a.m, b.m);
    c.l = a.l * snapkv_exp2(a.m - c.m) + b.l * snapkv_exp2(b.m - c.m);
    return c;
}

static __device__ __forceinline__ row_stats merge_lane(row_stats a, int mask) {
    row_stats b;
    b.m = snapkv_shfl_xor(a.m, mask);
    b.l = snapkv_shfl_xor(a.l, mask);
    return merge(a, b);
}

// part [n_splits][n_head][w]: statistics over a range of keys
template <typename L> static __global__ void __launch_bounds__(L::max_threads, L::min_blocks)
        snapkv_stats_kernel(score_args a, float2 * part) {
    SNAPKV_DYNAMIC_SHARED(uint4, smem);
    constexpr int M = L::M;
    constexpr int nt = L::nt;
    constexpr int KT = L::tile_keys;

    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    const int row0 = warp % a.warps_per_head * L::rows;
    const int head = blockIdx.y * a.g + a.head0 + warp / a.warps_per_head;
    const int start = blockIdx.x * a.range;
    const int n_tiles = (min(a.n, start + a.range) - start + KT - 1) / KT;
    L logits(a, a.k + blockIdx.y * a.k_nb2, reinterpret_cast<char *>(smem), start, n_tiles);

    logits.begin(head, row0);

    row_stats rows[M * 2]; // rows lane/4 + 8*i
    for (int t = 0; t < n_tiles; ++t) {
        logits.next(t);

#pragma unroll 1
        for (int j = 0; j < KT; j += L::keys) {
            acc_of<L> acc;
            logits.products(acc, j);
#pragma unroll
            for (int i = 0; i < M * nt * 4; ++i) {
                acc[i / 4 / nt][i / 4 % nt][i % 4] *= a.scale;
            }
            mask<L>(acc, -INFINITY, a, row0, start + t * KT + j);

#pragma unroll
            for (int i = 0; i < M * 2; ++i) {
                const float (&x)[nt][4] = acc[i / 2];
                const int e = i % 2 * 2;
                float m = rows[i].m;
#pragma unroll
                for (int c = 0; c < nt; ++c) {
                    m = fmaxf(m, fmaxf(x[c][e], x[c][e + 1]));
                }
                float l = rows[i].l * snapkv_exp2(rows[i].m - m);
#pragma unroll
                for (int c = 0; c < nt; ++c) {
                    l += snapkv_exp2(x[c][e] - m) + snapkv_exp2(x[c][e + 1] - m);
                }
                rows[i].m = m;
                rows[i].l = l;
            }
        }
    }

    float2 * out = part + ((int64_t) blockIdx.x * gridDim.y * a.g + head) * a.w;
#pragma unroll
    for (int i = 0; i < M * 2; ++i) {
        const row_stats s = merge_lane(merge_lane(rows[i], 1), 2);
        const int r = row0 + lane / 4 + i * 8;
        if (lane % 4 == 0 && r < a.w) {
            out[r] = make_float2(s.m, s.l);
        }
    }
}

// out [n_head][w], a warp for each row
static __global__ void snapkv_stats_merge_kernel(float2 * out, const float2 * part, const float * sinks, int n_rows, int w, int n_splits) {
    const int lane = threadIdx.x % 32;
    const int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (row >= n_rows) {
        return;
    }
    row_stats s;
    for (int i = lane; i < n_splits; i += 32) {
        const float2 x = part[(int64_t) i * n_rows + row];
        row_stats p;
        p.m = x.x;
        p.l = x.y;
        s = merge(s, p);
    }
    for (int mask = 16; mask > 0; mask /= 2) {
        s = merge_lane(s, mask);
    }
    if (lane == 0) {
        if (sinks) {
            row_stats p;
            p.m = fmaxf(sinks[row / w] * LOG2E, NO_MAX);
            p.l = 1.0f;
            s = merge(s, p);
        }
        out[row] = make_float2(s.m * LN2, s.l);
    }
}

template <typename L>
static void launch_stats(cudaStream_t stream, score_args a, float2 * out, const float * sinks, int64_t n_head_kv, int64_t max_splits) {
    static std::atomic<uint64_t> prepared{ 0 };
    a.warps_per_head = (a.w + L::rows - 1) / L::rows;
    const int64_t n_rows = n_head_kv * a.g * a.w;
    const int n_heads = heads_per_launch<L>(a);
    const size_t smem = L::shared_bytes(n_heads * a.warps_per_head);

    const int64_t resident = n_resident(snapkv_stats_kernel<L>, n_heads * a.warps_per_head * 32, smem, prepared) / n_head_kv;
    a.range = range_keys<L>(a.n, resident < max_splits ? resident : max_splits, 0);
    const int n_splits = (a.n + a.range - 1) / a.range;

    float2 * part = out + n_rows;
    for (a.head0 = 0; a.head0 < a.g; a.head0 += a.n_heads) {
        a.n_heads = a.g - a.head0 < n_heads ? a.g - a.head0 : n_heads;
        const dim3 grid(n_splits, (unsigned) n_head_kv);
        snapkv_launch(snapkv_stats_kernel<L>, grid, a.n_heads * a.warps_per_head * 32, smem, stream, a, part);
    }
    snapkv_launch(snapkv_stats_merge_kernel, (unsigned) ((n_rows + 3) / 4), 128, 0, stream, out, part, sinks, (int) n_rows, a.w, n_splits);
}

void snapkv_cuda_stats(cudaStream_t stream, const snapkv_op_params & params, ggml_tensor * op) {
    const ggml_tensor * k = op->src[1];
    const score_args a = make_args(params, op->src[0], k);
    float2 * out = (float2 *) op->data;
    const float * sinks = op->src[2] ? (const float *) op->src[2]->data : nullptr;
    with_logits(k->ne[0], a.w, [&](auto tag) { launch_stats<typename decltype(tag)::type>(stream, a, out, sinks, k->ne[2], op->ne[3] - 1); });
}
