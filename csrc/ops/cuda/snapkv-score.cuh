// What STATS and VOTES share: passes over K with the window's queries. Kernels are made for a kind of logits, which multiplies the
// window's rows with tiles of keys: snapkv-mma.cuh on tensor cores, snapkv-fma.cuh where these are missing or have no kernel.
//
// A block has a KV head and a range of keys, a warp 16*M query rows of one query head. Query heads begin at a warp: rows past the
// window are zeros. A block has whole heads; more heads than fit take further launches. A kind of logits L has
//     M                      of 16 query rows of a warp, L::rows
//     nt                     of 8 keys that a warp multiplies at once, L::keys
//     tile_keys              keys of a tile, a multiple of L::keys
//     max_rows               query rows of a block
//     max_threads, min_blocks of the kernel, as __launch_bounds__ takes them
//     shared_bytes(n_warps)  dynamic shared memory, multiple of 16
//     L(a, k, memory, start, n_tiles), then begin(head, row0): a range's keys from `start` on, for rows row0 .. of a query head
//     next(t)                tile t, 0, 1, ... in turn. Also a barrier, after which nobody reads tile t - 1 any more
//     products(acc, j)       the warp's rows times the keys from key j of the tile on, capped but not scaled
// All threads of the block call in step. The products lie as mma.m16n8k16 has them, lane l of a warp: elements 0, 1 are row l/4,
// columns 2*(l%4), +1 of the 16x8 result; 2, 3 are row l/4 + 8.
#pragma once

#include "snapkv-common.cuh"

#include <atomic>
#include <math.h>
#include <type_traits>

static constexpr float LOG2E = 1.4426950408889634f;

template <typename L> using acc_of = float[L::M][L::nt][4];

enum k_kind { K_F16_ALIGNED, K_F16, K_BF16, K_F32, K_Q8_0, K_Q4_0 };

struct score_args {
    const char * q;
    const char * k;
    int64_t q_nb1, q_nb2;
    int64_t k_nb1, k_nb2;
    k_kind kind;
    bool wide; // rows of K are aligned to 16 bytes
    int n, w, g;
    int head0;          // of the g query heads, the first of this launch
    int n_heads;        // of this launch
    int warps_per_head; // ceil(w/rows of a warp)
    int range;          // keys of a block
    // logits in base 2: scale*qk, with a cap scale*cap*tanh(qk*..), tanh from exp2(tanh_scale*qk)
    float scale, cap, tanh_scale;
    int d; // dims of a head
};

static __device__ __forceinline__ float snapkv_exp2(float x) {
#ifdef GGML_USE_HIP
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

static __device__ __forceinline__ float snapkv_f16_to_f32(uint16_t bits) {
    return __half2float(__ushort_as_half(bits));
}

//
// rows of K
//

static __device__ __forceinline__ uint4 load16(const char * p, bool wide) {
    if (wide) {
        return *reinterpret_cast<const uint4 *>(p);
    }
    const uint16_t * s = reinterpret_cast<const uint16_t *>(p);
    return make_uint4(s[0] | (uint32_t) s[1] << 16, s[2] | (uint32_t) s[3] << 16, s[4] | (uint32_t) s[5] << 16, s[6] | (uint32_t) s[7] << 16);
}

// elements 8*c .. 8*c + 7 of a row of K; convert() takes them as float[8], or as f16 in the order of memory
template <typename F> static __device__ __forceinline__ auto load8(const char * row, int c, k_kind kind, bool wide, F && convert) {
    float x[8];
    switch (kind) {
        case K_F32: {
            const uint4 a = load16(row + c * 32, wide);
            const uint4 b = load16(row + c * 32 + 16, wide);
            x[0] = __uint_as_float(a.x), x[1] = __uint_as_float(a.y), x[2] = __uint_as_float(a.z), x[3] = __uint_as_float(a.w);
            x[4] = __uint_as_float(b.x), x[5] = __uint_as_float(b.y), x[6] = __uint_as_float(b.z), x[7] = __uint_as_float(b.w);
            return convert(x);
        }
        case K_BF16: {
            const uint4 a = load16(row + c * 16, wide);
            const uint32_t u[4] = { a.x, a.y, a.z, a.w };
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                x[2 * i] = __uint_as_float(u[i] << 16);
                x[2 * i + 1] = __uint_as_float(u[i] & 0xffff0000u);
            }
            return convert(x);
        }
        case K_Q8_0: { // half d, 32 int8
            const uint16_t * block = reinterpret_cast<const uint16_t *>(row + (c / 4) * 34);
            const float d = snapkv_f16_to_f32(block[0]);
            const uint16_t * qs = block + 1 + (c % 4) * 4;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                x[2 * i] = d * (float) (int8_t) (qs[i] & 0xff);
                x[2 * i + 1] = d * (float) (int8_t) (qs[i] >> 8);
            }
            return convert(x);
        }
        case K_Q4_0: { // half d, 16 bytes: the low nibbles are elements 0..15, the high ones 16..31
            const uint16_t * block = reinterpret_cast<const uint16_t *>(row + (c / 4) * 18);
            const float d = snapkv_f16_to_f32(block[0]);
            const uint16_t * qs = block + 1 + (c % 2) * 4;
            const int shift = (c % 4) / 2 * 4;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                x[2 * i] = d * (float) ((int) (qs[i] >> shift & 15) - 8);
                x[2 * i + 1] = d * (float) ((int) (qs[i] >> (8 + shift) & 15) - 8);
            }
            return convert(x);
        }
        default: return convert(load16(row + c * 16, wide));
    }
}

//
// logits
//

template <typename L> static __device__ __forceinline__ void cap_products(acc_of<L> & acc, const score_args & a) {
    if (a.cap != 0.0f) {
#pragma unroll
        for (int i = 0; i < L::M * L::nt * 4; ++i) {
            float & x = acc[i / 4 / L::nt][i / 4 % L::nt][i % 4];
            x = a.cap * (1.0f - __fdividef(2.0f, snapkv_exp2(x * a.tanh_scale) + 1.0f));
        }
    }
}

// puts a value where the row does not see the key: row r sees keys 0 .. n - w + r
template <typename L> static __device__ __forceinline__ void mask(acc_of<L> & acc, float value, const score_args & a, int row0, int j0) {
    const int first = a.n - a.w;
    if (j0 + L::keys <= first + 1) {
        return;
    }
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < L::M; ++m) {
#pragma unroll
        for (int t = 0; t < L::nt; ++t) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int r = row0 + m * 16 + e / 2 * 8 + lane / 4;
                const int j = j0 + t * 8 + lane % 4 * 2 + e % 2;
                acc[m][t][e] = j <= first + r ? acc[m][t][e] : value;
            }
        }
    }
}

//
// launches
//

static score_args make_args(const snapkv_op_params & params, const ggml_tensor * q, const ggml_tensor * k) {
    score_args a = {};
    a.q = (const char *) q->data;
    a.k = (const char *) k->data;
    a.q_nb1 = (int64_t) q->nb[1];
    a.q_nb2 = (int64_t) q->nb[2];
    a.k_nb1 = (int64_t) k->nb[1];
    a.k_nb2 = (int64_t) k->nb[2];
    a.wide = ((uint64_t) (uintptr_t) a.k | (uint64_t) a.k_nb1 | (uint64_t) a.k_nb2) % 16 == 0;
    switch (k->type) {
        case GGML_TYPE_F16: a.kind = a.wide ? K_F16_ALIGNED : K_F16; break;
        case GGML_TYPE_BF16: a.kind = K_BF16; break;
        case GGML_TYPE_F32: a.kind = K_F32; break;
        case GGML_TYPE_Q8_0: a.kind = K_Q8_0; break;
        default: a.kind = K_Q4_0; break;
    }
    a.d = (int) k->ne[0];
    a.n = (int) k->ne[1];
    a.w = (int) q->ne[1];
    a.g = (int) (q->ne[2] / k->ne[2]);
    a.scale = (params.softcap != 0.0f ? 1.0f : params.scale) * LOG2E;
    if (params.softcap != 0.0f) {
        a.cap = params.softcap;
        a.tanh_scale = 2.0f * params.scale / params.softcap * LOG2E;
    }
    return a;
}

// query heads of a launch: as even as the launches can be
template <typename L> static int heads_per_launch(const score_args & a) {
    const int fit = L::max_rows / (a.warps_per_head * L::rows);
    const int most = fit > 1 ? fit : 1;
    const int n_launches = (a.g + most - 1) / most;
    return (a.g + n_launches - 1) / n_launches;
}

// blocks of the kernel that the device runs at once
template <typename... P> static int n_resident(void (*kernel)(P...), int threads, size_t smem, std::atomic<uint64_t> & prepared) {
    int device = 0;
    int n_sm = 1;
    int blocks = 0;
    (void) cudaGetDevice(&device);
    (void) cudaDeviceGetAttribute(&n_sm, cudaDevAttrMultiProcessorCount, device);
#ifndef GGML_USE_HIP // there no kernel takes more shared memory than all may
    // the attributes are the kernel's on one device: set once for each, or twice if threads meet here, which does no harm
    const uint64_t bit = 1ull << (device % 64);
    if (!(prepared.load() & bit)) {
        int limit = 0;
        cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit);
        cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
        prepared.fetch_or(bit);
    }
#endif
    (void) prepared;
    (void) cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, smem);
    return n_sm * (blocks > 1 ? blocks : 1);
}

// keys of a block such that all blocks run at once, each of whole tiles with `overlap` keys that others have, too
template <typename L> static int range_keys(int n, int64_t max_splits, int overlap) {
    constexpr int tile = L::tile_keys;
    const int least = 4 + overlap / 16;
    const int n_splits = (int) (max_splits > 1 ? max_splits : 1);
    const int keys = (n + n_splits - 1) / n_splits;
    const int tiles = (keys + overlap + tile - 1) / tile;
    return (tiles > least ? tiles : least) * tile - overlap;
}
