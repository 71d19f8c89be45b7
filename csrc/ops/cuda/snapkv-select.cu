// SELECT: a block for each KV head. Radix select of the k-th highest vote, eight bits a pass, then an ordered compaction. All
// decisions are made in integers and the sums of mass have a fixed order: the same result on every run.
#include "snapkv-common.cuh"

static constexpr int THREADS = 1024;
static constexpr int WARPS = THREADS / 32;
static constexpr int BINS = 256;
static constexpr int BATCH = 8; // loads in flight of a thread

// higher vote, higher key; -0 is 0, and NaN is below all
static __device__ __forceinline__ uint32_t vote_key(float vote) {
    const uint32_t x = __float_as_uint(vote);
    if ((x & 0x7fffffffu) > 0x7f800000u) {
        return 0;
    }
    return x & 0x80000000u ? (x == 0x80000000u ? x : ~x) : x | 0x80000000u;
}

static __device__ __forceinline__ uint32_t warp_sum(uint32_t x) {
    for (int mask = 16; mask > 0; mask /= 2) {
        x += snapkv_shfl_xor(x, mask);
    }
    return x;
}

// to thread 0
static __device__ double block_sum(double x, double * warps) {
    for (int mask = 16; mask > 0; mask /= 2) {
        x += snapkv_shfl_xor(x, mask);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        warps[threadIdx.x / 32] = x;
    }
    __syncthreads();
    double sum = 0.0;
    if (threadIdx.x == 0) {
        for (int i = 0; i < WARPS; ++i) {
            sum += warps[i];
        }
    }
    return sum;
}

struct threshold {
    uint32_t key;  // of the k-th highest vote
    uint32_t ties; // votes of that key that belong to the k highest
};

// of the votes at positions i0 .. i1 - 1; 1 <= k <= i1 - i0
static __device__ threshold find_threshold(const float * votes, int i0, int i1, uint32_t k) {
    // a column for each lane: votes crowd in few bins, and lanes that meet there would wait for each other
    __shared__ uint32_t hist[BINS * 32];
    __shared__ uint32_t bins[BINS];
    __shared__ threshold found;

    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;

    threshold th = { 0, k };
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int i = threadIdx.x; i < BINS * 32; i += THREADS) {
            hist[i] = 0;
        }
        __syncthreads();
        for (int base = i0 + threadIdx.x; base < i1; base += THREADS * BATCH) {
            float v[BATCH];
#pragma unroll
            for (int b = 0; b < BATCH; ++b) {
                const int i = base + b * THREADS;
                v[b] = i < i1 ? votes[i] : 0.0f;
            }
#pragma unroll
            for (int b = 0; b < BATCH; ++b) {
                const uint32_t key = vote_key(v[b]);
                if (base + b * THREADS < i1 && (uint64_t) (key ^ th.key) >> (shift + 8) == 0) {
                    atomicAdd(&hist[(key >> shift) % BINS * 32 + lane], 1u);
                }
            }
        }
        __syncthreads();
        for (int b = warp; b < BINS; b += WARPS) {
            const uint32_t sum = warp_sum(hist[b * 32 + lane]);
            if (lane == 0) {
                bins[b] = sum;
            }
        }
        __syncthreads();
        // a lane has 8 bins, lane 0 the highest
        if (warp == 0) {
            const int top = BINS - 1 - lane * 8;
            uint32_t sum = 0;
            for (int b = 0; b < 8; ++b) {
                sum += bins[top - b];
            }
            uint32_t above = sum;
            for (int d = 1; d < 32; d *= 2) {
                const uint32_t x = snapkv_shfl_up(above, d);
                above += lane >= d ? x : 0;
            }
            above -= sum;
            if (above < th.ties && above + sum >= th.ties) {
                int b = top;
                while (above + bins[b] < th.ties) {
                    above += bins[b--];
                }
                found.key = th.key | (uint32_t) b << shift;
                found.ties = th.ties - above;
            }
        }
        __syncthreads();
        th = found;
    }
    return th;
}

// votes, mass [n_head_kv][n]; out [n_head_kv][n_kept + 1]
static __global__ void __launch_bounds__(THREADS) snapkv_select_kernel(const float * votes, const float * mass, int32_t * out, int n, int w, int n_kept, int n_sink) {
    __shared__ double warps[WARPS];
    __shared__ uint32_t n_above[WARPS];
    __shared__ uint32_t n_equal[WARPS];

    votes += (int64_t) blockIdx.x * n;
    mass += (int64_t) blockIdx.x * n;
    out += (int64_t) blockIdx.x * (n_kept + 1);

    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    const uint32_t lanes_below = (1u << lane) - 1;
    const int i1 = n - w;

    double total = 0.0;
    double held = 0.0;
    for (int base = threadIdx.x; base < n; base += THREADS * BATCH) {
        float m[BATCH];
#pragma unroll
        for (int b = 0; b < BATCH; ++b) {
            const int i = base + b * THREADS;
            m[b] = i < n ? mass[i] : 0.0f;
        }
#pragma unroll
        for (int b = 0; b < BATCH; ++b) {
            const int i = base + b * THREADS;
            total += m[b];
            held += i < n_sink || i >= i1 ? m[b] : 0.0f;
        }
    }
    for (int i = threadIdx.x; i < n_sink; i += THREADS) {
        out[i] = i;
    }

    if (n_kept > n_sink) {
        const threshold th = find_threshold(votes, n_sink, i1, n_kept - n_sink);

        // a warp has a segment of positions, so that it writes its ids in order without waiting for others
        const int seg = ((i1 - n_sink + WARPS - 1) / WARPS + 31) / 32 * 32;
        const int s0 = n_sink + min(warp * seg, i1 - n_sink);
        const int s1 = min(s0 + seg, i1);

        uint32_t above = 0;
        uint32_t equal = 0;
        for (int base = s0 + lane; base < s1; base += 32 * BATCH) {
            float v[BATCH];
#pragma unroll
            for (int b = 0; b < BATCH; ++b) {
                v[b] = base + b * 32 < s1 ? votes[base + b * 32] : 0.0f;
            }
#pragma unroll
            for (int b = 0; b < BATCH; ++b) {
                const uint32_t key = vote_key(v[b]);
                above += base + b * 32 < s1 && key > th.key;
                equal += base + b * 32 < s1 && key == th.key;
            }
        }
        above = warp_sum(above);
        equal = warp_sum(equal);
        if (lane == 0) {
            n_above[warp] = above;
            n_equal[warp] = equal;
        }
        __syncthreads();
        uint32_t ties = 0; // equals before the position
        uint32_t pos = n_sink;
        for (int i = 0; i < warp; ++i) {
            pos += n_above[i];
            ties += n_equal[i];
        }
        pos += min(ties, th.ties);

        for (int base = s0; base < s1; base += 32 * BATCH) {
            float v[BATCH];
#pragma unroll
            for (int b = 0; b < BATCH; ++b) {
                const int i = base + b * 32 + lane;
                v[b] = i < s1 ? votes[i] : 0.0f;
            }
#pragma unroll
            for (int b = 0; b < BATCH; ++b) {
                const int i = base + b * 32 + lane;
                const uint32_t key = vote_key(v[b]);
                const uint32_t eq = snapkv_ballot(i < s1 && key == th.key);
                const bool kept = i < s1 && (key > th.key || (key == th.key && ties + __popc(eq & lanes_below) < th.ties));
                const uint32_t all = snapkv_ballot(kept);
                if (kept) {
                    out[pos + __popc(all & lanes_below)] = i;
                    held += mass[i];
                }
                pos += __popc(all);
                ties += __popc(eq);
            }
        }
    }

    total = block_sum(total, warps);
    held = block_sum(held, warps);
    if (threadIdx.x == 0) {
        const double share = total > 0.0 ? fmax(0.0, fmin(1.0, held / total)) : 1.0;
        out[n_kept] = __float_as_int((float) share);
    }
}

void snapkv_cuda_select(cudaStream_t stream, const snapkv_op_params & params, ggml_tensor * op) {
    const ggml_tensor * votes = op->src[0];
    const int n = (int) votes->ne[0];
    const int n_head_kv = (int) votes->ne[1];
    const int n_kept = (int) op->ne[0] - 1;
    const int n_sink = params.n_sink < n_kept ? params.n_sink : n_kept;
    const float * plane = (const float *) votes->data;
    snapkv_launch(snapkv_select_kernel, n_head_kv, THREADS, 0, stream, plane, plane + (int64_t) n * n_head_kv, (int32_t *) op->data, n, params.window, n_kept, n_sink);
}
