// VOTES: what each key gets of the window's attention, pooled over the keys.
#include "snapkv-logits.cuh"

static constexpr int RING = 256; // columns of votes kept for pooling: two tiles and kernel - 1 are less. A power of two
static constexpr int RING_STRIDE = RING + 8; // so that four neighbouring rings lie in different banks

// enum llama_snapkv_pooling and enum llama_snapkv_aggregation; snapkv.h would bring in llama.h, which ggml-cuda does not see
enum { SNAPKV_CUDA_POOLING_AVG = 0,
    SNAPKV_CUDA_POOLING_MAX = 1,
    SNAPKV_CUDA_POOLING_NOSINK = 2 };
enum { SNAPKV_CUDA_AGGREGATION_SUM = 0,
    SNAPKV_CUDA_AGGREGATION_MAX = 1 };

template <bool use_max> static __device__ __forceinline__ float combine(float a, float b) {
    return use_max ? fmaxf(a, b) : a + b;
}

// reduces a warp's columns over its rows, to dst. Each step halves the columns of a lane instead of reducing all of them
// everywhere: 14 shuffles for 64 columns, not 48
template <bool use_max, int nt> static __device__ __forceinline__ void reduce_rows(float * dst, float (&v)[nt][2]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = nt / 2; half > 0; half /= 2) {
        const int bit = half * 32 / nt;
        const bool upper = lane & bit;
#pragma unroll
        for (int t = 0; t < half; ++t) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const float lo = v[t][e];
                const float hi = v[t + half][e];
                v[t][e] = combine<use_max>(upper ? hi : lo, snapkv_shfl_xor(upper ? lo : hi, bit));
            }
        }
    }
    if (nt == 8) {
        *reinterpret_cast<float2 *>(dst + lane * 2) = make_float2(v[0][0], v[0][1]);
        return;
    }
    const bool upper = lane & 4;
    const float send = upper ? v[0][0] : v[0][1];
    dst[lane / 8 * 8 + lane % 4 * 2 + upper] = combine<use_max>(upper ? v[0][1] : v[0][0], snapkv_shfl_xor(send, 4));
}

struct votes_args {
    const float2 * stats; // [n_head][w], plane 0 of STATS' result
    float * votes;        // [n_head_kv][n]
    float * mass;         // [n_head_kv][n]
    int kernel_size, pooling;
    bool reduce_max;
    bool add; // to what a launch for other query heads left
    float inv_g;
    float self_weight;

    // the mean of the heads commutes with linear pooling alone
    __host__ __device__ bool pools_heads() const { return pooling == SNAPKV_CUDA_POOLING_MAX; }
};

// of the kernel's columns up to `last`; column `first` has the first key
static __device__ __forceinline__ float pooled(const votes_args & v, const float * ring, int first, int last) {
    float sum = 0.0f;
    float top = 0.0f;
    for (int c = last - v.kernel_size + 1; c <= last; ++c) {
        const float x = v.pooling == SNAPKV_CUDA_POOLING_NOSINK && c == first ? 0.0f : ring[c & (RING - 1)];
        sum += x;
        top = fmaxf(top, x);
    }
    return v.pooling == SNAPKV_CUDA_POOLING_MAX ? top : sum / v.kernel_size;
}

// A block's keys are followed and preceded by half a kernel, so that it can pool alone. A tile goes through three steps, each
// an iteration behind the former, so that one barrier an iteration does:
//     the warps' column sums -> part;  sums over warps -> ring, mass;  pooling of the ring -> votes
template <typename L> static __global__ void __launch_bounds__(L::max_threads, L::min_blocks)
        snapkv_votes_kernel(score_args a, votes_args v) {
    SNAPKV_DYNAMIC_SHARED(uint4, smem);
    constexpr int M = L::M;
    constexpr int nt = L::nt;
    constexpr int KT = L::tile_keys;

    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    const int n_warps = blockDim.x / 32;
    const int row0 = warp % a.warps_per_head * L::rows;
    const int head = blockIdx.y * a.g + a.head0 + warp / a.warps_per_head;
    const int half = v.kernel_size / 2;
    const int out0 = blockIdx.x * a.range; // of the range that this block writes
    const int out1 = min(a.n, out0 + a.range);
    const int start = out0 - half;
    const int n_tiles = (out1 - out0 + 2 * half + KT - 1) / KT;
    L logits(a, a.k + blockIdx.y * a.k_nb2, reinterpret_cast<char *>(smem), start, n_tiles);
    float * votes = v.votes + (int64_t) blockIdx.y * a.n;
    float * mass = v.mass + (int64_t) blockIdx.y * a.n;

    const int plane = n_warps * KT;
    const int part_size = v.reduce_max ? 2 * plane : plane;
    float * part = reinterpret_cast<float *>(reinterpret_cast<char *>(smem) + L::shared_bytes(n_warps)); // [2][1 + reduce_max][n_warps][KT]
    float * ring = part + 2 * part_size;                                             // [n_rings][RING_STRIDE]
    const int n_rings = v.pools_heads() ? a.n_heads : 1;

    logits.begin(head, row0);

    // p = exp2(logit - off) of rows lane/4 + 8*i; rows past the window get none
    float off[M * 2];
#pragma unroll
    for (int i = 0; i < M * 2; ++i) {
        const int r = row0 + lane / 4 + i * 8;
        off[i] = INFINITY;
        if (r < a.w) {
            const float2 s = v.stats[(int64_t) head * a.w + r];
            off[i] = s.x * LOG2E + log2f(s.y);
        }
    }

    for (int t = 0; t < n_tiles + 2; ++t) {
        logits.next(t); // its barrier is also that between a step's writes and the next step's reads

        // sums over warps of tile t - 1
        if (t >= 1 && t <= n_tiles) {
            const float * sums = part + (t - 1) % 2 * part_size;
            const float * src = v.reduce_max ? sums + plane : sums;
            for (int i = threadIdx.x; i < n_rings * KT; i += blockDim.x) {
                const int h0 = v.pools_heads() ? i / KT : 0;
                const int h1 = v.pools_heads() ? h0 + 1 : a.n_heads;
                float vote = 0.0f;
                for (int h = h0; h < h1; ++h) {
                    const float * x = src + h * a.warps_per_head * KT + i % KT;
                    float y = x[0];
                    for (int s = 1; s < a.warps_per_head; ++s) {
                        y = v.reduce_max ? fmaxf(y, x[s * KT]) : y + x[s * KT];
                    }
                    vote += y;
                }
                const int col = (t - 1) * KT + i % KT;
                const int j = start + col;
                ring[i / KT * RING_STRIDE + (col & (RING - 1))] = j >= 0 && j < a.n - a.w ? vote : 0.0f;
            }
            for (int i = blockDim.x - 1 - threadIdx.x; i < KT; i += blockDim.x) {
                const int j = start + (t - 1) * KT + i;
                if (j >= out0 && j < out1) {
                    float sum = 0.0f;
                    for (int s = 0; s < n_warps; ++s) {
                        sum += sums[s * KT + i];
                    }
                    mass[j] = sum * v.inv_g + (v.add ? mass[j] : 0.0f);
                }
            }
        }

        // pooling of the columns whose last neighbour is in tile t - 2
        if (t >= 2) {
            // four lanes share the rings of a column; whole warps go through this
            const int lanes = n_rings > 1 ? 4 : 1;
            for (int i = threadIdx.x; i < KT * lanes; i += blockDim.x) {
                const int last = (t - 2) * KT + i / lanes;
                const int j = start + last - half;
                float vote = 0.0f;
                if (j >= out0 && j < out1 && j < a.n - a.w) {
                    for (int h = i % lanes; h < n_rings; h += lanes) {
                        const float * x = ring + h * RING_STRIDE;
                        vote += pooled(v, x, -start, last) + v.self_weight * x[(last - half) & (RING - 1)];
                    }
                }
                for (int bit = 1; bit < lanes; bit *= 2) {
                    vote += snapkv_shfl_xor(vote, bit);
                }
                if (i % lanes == 0 && j >= out0 && j < out1) {
                    votes[j] = vote * v.inv_g + (v.add ? votes[j] : 0.0f);
                }
            }
        }

        if (t >= n_tiles) {
            continue;
        }
        float * dst = part + t % 2 * part_size + warp * KT;
#pragma unroll 1
        for (int j = 0; j < KT; j += L::keys) {
            acc_of<L> acc;
            logits.products(acc, j);
#pragma unroll
            for (int i = 0; i < M * nt * 4; ++i) {
                float & x = acc[i / 4 / nt][i / 4 % nt][i % 4];
                x = snapkv_exp2(fmaf(x, a.scale, -off[i / 4 / nt * 2 + i % 4 / 2]));
            }
            mask<L>(acc, 0.0f, a, row0, start + t * KT + j);

            float x[nt][2];
#pragma unroll
            for (int i = 0; i < nt * 2; ++i) {
                float & sum = x[i / 2][i % 2];
                sum = acc[0][i / 2][i % 2] + acc[0][i / 2][i % 2 + 2];
#pragma unroll
                for (int m = 1; m < M; ++m) {
                    sum += acc[m][i / 2][i % 2] + acc[m][i / 2][i % 2 + 2];
                }
            }
            reduce_rows<false>(dst + j, x);
            if (v.reduce_max) {
#pragma unroll
                for (int i = 0; i < nt * 2; ++i) {
                    float & most = x[i / 2][i % 2];
                    most = fmaxf(acc[0][i / 2][i % 2], acc[0][i / 2][i % 2 + 2]);
#pragma unroll
                    for (int m = 1; m < M; ++m) {
                        most = fmaxf(most, fmaxf(acc[m][i / 2][i % 2], acc[m][i / 2][i % 2 + 2]));
                    }
                }
                reduce_rows<true>(dst + plane + j, x);
            }
        }
    }
}

template <typename L> static void launch_votes(cudaStream_t stream, score_args a, votes_args v, int64_t n_head_kv) {
    static std::atomic<uint64_t> prepared{ 0 };
    a.warps_per_head = (a.w + L::rows - 1) / L::rows;
    const int n_heads = heads_per_launch<L>(a);
    const int n_warps = n_heads * a.warps_per_head;
    const int n_rings = v.pools_heads() ? n_heads : 1;
    const size_t smem = L::shared_bytes(n_warps) + sizeof(float) * (2 * (v.reduce_max ? 2 : 1) * n_warps * L::tile_keys + n_rings * RING_STRIDE);

    a.range = range_keys<L>(a.n, n_resident(snapkv_votes_kernel<L>, n_warps * 32, smem, prepared) / n_head_kv, v.kernel_size - 1);
    for (a.head0 = 0; a.head0 < a.g; a.head0 += a.n_heads) {
        a.n_heads = a.g - a.head0 < n_heads ? a.g - a.head0 : n_heads;
        v.add = a.head0 > 0;
        const dim3 grid((a.n + a.range - 1) / a.range, (unsigned) n_head_kv);
        snapkv_launch(snapkv_votes_kernel<L>, grid, a.n_heads * a.warps_per_head * 32, smem, stream, a, v);
    }
}

void snapkv_cuda_votes(cudaStream_t stream, const snapkv_op_params & params, ggml_tensor * op) {
    const ggml_tensor * k = op->src[1];
    const score_args a = make_args(params, op->src[0], k);
    votes_args v = {};
    v.stats = (const float2 *) op->src[2]->data;
    v.votes = (float *) op->data;
    v.mass = v.votes + (int64_t) a.n * k->ne[2];
    v.kernel_size = params.kernel_size;
    v.pooling = params.pooling;
    v.self_weight = params.self_weight;
    v.reduce_max = params.aggregation == SNAPKV_CUDA_AGGREGATION_MAX;
    v.inv_g = 1.0f / a.g;
    with_logits(k->ne[0], a.w, [&](auto tag) { launch_votes<typename decltype(tag)::type>(stream, a, v, k->ne[2]); });
}
