// Logits in f32 without tensor cores: any GPU of NVIDIA's or AMD's, and any head size that is a multiple of 16.
//
// As in a product of matrices, slices of 16 dims of the rows and of a tile of keys go through shared memory, and a thread adds up
// the products of 2*M rows and 16 keys in registers. What a block has in shared memory stays below the 48 KB that each device has.
#pragma once

#include "snapkv-score.cuh"

struct to_f32 {
    struct result {
        float4 lo, hi;
    };
    __device__ __forceinline__ result operator()(const float (&x)[8]) const {
        return { make_float4(x[0], x[1], x[2], x[3]), make_float4(x[4], x[5], x[6], x[7]) };
    }
    __device__ __forceinline__ result operator()(uint4 f16) const {
        const uint32_t u[4] = { f16.x, f16.y, f16.z, f16.w };
        float x[8];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            x[2 * i] = snapkv_f16_to_f32((uint16_t) u[i]);
            x[2 * i + 1] = snapkv_f16_to_f32((uint16_t) (u[i] >> 16));
        }
        return (*this)(x);
    }
};

template <int M_> struct fma_logits {
    static constexpr int M = M_;
    static constexpr int rows = 16 * M;
    static constexpr int nt = 8;
    static constexpr int keys = 8 * nt;
    static constexpr int tile_keys = keys;
    static constexpr int max_rows = 128; // and the 256 of one head with a window of so many
    static constexpr int max_threads = 256;
    static constexpr int min_blocks = 2;

    static constexpr int DIMS = 16;         // of a slice
    static constexpr int STRIDE = DIMS + 4; // an odd number of 16 bytes: neighbouring rows lie in different banks

    static constexpr __host__ __device__ size_t shared_bytes(int n_warps) { return (tile_keys + n_warps * rows) * STRIDE * sizeof(float); }

    const score_args & a;
    const char * k;  // of the KV head
    float * k_slice; // [tile_keys][STRIDE]
    float * q_slice; // of the warp [rows][STRIDE]
    int start;
    const char * q; // of row row0
    int n_rows;     // of those from row0 on, in the window
    int j0;         // first key of the tile

    __device__ __forceinline__ fma_logits(const score_args & a, const char * k, char * memory, int start, int) :
        a(a), k(k), k_slice(reinterpret_cast<float *>(memory)), q_slice(k_slice + (tile_keys + threadIdx.x / 32 * rows) * STRIDE), start(start) {}

    __device__ __forceinline__ void begin(int head, int row0) {
        q = a.q + head * a.q_nb2 + row0 * a.q_nb1;
        n_rows = a.w - row0;
    }

    __device__ __forceinline__ void next(int t) {
        __syncthreads();
        j0 = start + t * tile_keys;
    }

    __device__ __forceinline__ void load_slice(int d0) const {
        for (int i = threadIdx.x; i < tile_keys * (DIMS / 8); i += blockDim.x) {
            const int row = i / (DIMS / 8);
            const int c = i % (DIMS / 8);
            const int j = j0 + row;
            to_f32::result x = {};
            if (j >= 0 && j < a.n) {
                x = load8(k + j * a.k_nb1, d0 / 8 + c, a.kind, a.wide, to_f32());
            }
            float4 * dst = reinterpret_cast<float4 *>(k_slice + row * STRIDE + c * 8);
            dst[0] = x.lo;
            dst[1] = x.hi;
        }
#pragma unroll
        for (int s = 0; s < rows * DIMS / 32; ++s) {
            const int i = s * 32 + threadIdx.x % 32;
            const int row = i / DIMS;
            const int d = i % DIMS;
            q_slice[row * STRIDE + d] = row < n_rows ? reinterpret_cast<const float *>(q + row * a.q_nb1)[d0 + d] : 0.0f;
        }
    }

    __device__ __forceinline__ void products(acc_of<fma_logits> & acc, int) const {
        const int lane = threadIdx.x % 32;
        const float * q_rows = q_slice + lane / 4 * STRIDE;
        const float * k_rows = k_slice + lane % 4 * 2 * STRIDE;

#pragma unroll
        for (int i = 0; i < M * nt * 4; ++i) {
            acc[i / 4 / nt][i / 4 % nt][i % 4] = 0.0f;
        }
        for (int d0 = 0; d0 < a.d; d0 += DIMS) {
            if (d0 > 0) {
                __syncthreads(); // nobody reads the former slice any more
            }
            load_slice(d0);
            __syncthreads();
#pragma unroll 1 // unrolled, loads would be moved forward, for which there are too few registers
            for (int d = 0; d < DIMS; d += 4) {
                float4 y[M * 2];
#pragma unroll
                for (int i = 0; i < M * 2; ++i) {
                    y[i] = *reinterpret_cast<const float4 *>(q_rows + i * 8 * STRIDE + d);
                }
#pragma unroll
                for (int c = 0; c < nt * 2; ++c) {
                    const float4 x = *reinterpret_cast<const float4 *>(k_rows + (c / 2 * 8 + c % 2) * STRIDE + d);
#pragma unroll
                    for (int i = 0; i < M * 2; ++i) {
                        float & sum = acc[i / 2][c / 2][i % 2 * 2 + c % 2];
                        sum = fmaf(x.x, y[i].x, sum);
                        sum = fmaf(x.y, y[i].y, sum);
                        sum = fmaf(x.z, y[i].z, sum);
                        sum = fmaf(x.w, y[i].w, sum);
                    }
                }
            }
        }
        cap_products<fma_logits>(acc, a);
    }
};
