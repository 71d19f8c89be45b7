// What STATS and VOTES share: passes over K with the window's queries, on tensor cores, in f16 with f32 sums (as llama.cpp's flash
// attention multiplies Q and K).
//
// A block has a KV head and a range of keys. K goes through shared memory in tiles of KT keys; a warp has 16*M query rows of one
// query head, their Q in registers for the whole range, and multiplies them with each tile. Query heads begin at a warp: rows
// past the window are zeros. A block has up to 256 rows, so that a whole head fits; more heads than fit take further launches.
// M = 2 reads shared memory half as often; it needs registers for 32 rows and an even number of 16 rows a head. Heads of 512 and 576
// take half of the rows, of the keys and of the results at once: their Q alone is 128 registers or more, their tile would be 65 KB.
//
// mma.m16n8k16, lane l of a warp: the accumulators 0, 1 are row l/4, columns 2*(l%4), +1 of the 16x8 result; 2, 3 are row l/4 + 8.
#pragma once

#include "snapkv-common.cuh"

#include <cuda_fp16.h>

#include <atomic>
#include <math.h>
#include <type_traits>

static constexpr float LOG2E = 1.4426950408889634f;

// query rows of a block
static constexpr int max_rows(int64_t head_dim) {
    return head_dim <= 256 ? 256 : 128;
}

template <int D, int M> struct warp_shape {
    static constexpr int rows = 16 * M;
    static constexpr int nt = (D <= 256 ? 8 : 4) / M; // results of 8 keys that a warp has at once, for as many accumulators with either M
    static constexpr int keys = 8 * nt;
    static constexpr int max_threads = max_rows(D) / rows * 32;
    static constexpr int min_blocks = D <= 256 ? 512 / max_threads : 1; // of a multiprocessor
};

template <int D, int M> using acc_t = float[M][warp_shape<D, M>::nt][4];

template <int D> struct tile_shape {
    static constexpr int keys = D <= 256 ? 64 : 32;
    static constexpr int chunks = D / 8;           // of 8 elements, 16 bytes
    static constexpr int stride = D * 2 + 16;      // bytes; an odd number of chunks: ldmatrix's 8 rows meet all banks
    static constexpr int stages = D <= 160 ? 3 : 2; // with the rest below 99 KB, the limit of compute capability 8.6
    static constexpr int bytes = keys * stride;
};

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
};

//
// instructions
//

static __device__ __forceinline__ uint32_t snapkv_pack_f16(float lo, float hi) {
    const __half2 h = __floats2half2_rn(lo, hi);
    return *reinterpret_cast<const uint32_t *>(&h);
}

static __device__ __forceinline__ float snapkv_f16_to_f32(uint16_t bits) {
    return __half2float(__ushort_as_half(bits));
}

static __device__ __forceinline__ float snapkv_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// ggml-cuda is also compiled for older devices, which never get our nodes
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define SNAPKV_ASM(...) asm volatile(__VA_ARGS__)
#else
#define SNAPKV_ASM(...) __trap()
#endif

// 16 bytes from global to shared memory; zeros if !valid. Both addresses are multiples of 16
static __device__ __forceinline__ void snapkv_cp_async(char * dst, const char * src, bool valid) {
    const uint32_t d = (uint32_t) __cvta_generic_to_shared(dst);
    SNAPKV_ASM("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(d), "l"(src), "r"(valid ? 16 : 0) : "memory");
}

static __device__ __forceinline__ void snapkv_cp_async_commit() {
    SNAPKV_ASM("cp.async.commit_group;" ::: "memory");
}

// until at most n groups of this thread are under way
template <int n> static __device__ __forceinline__ void snapkv_cp_async_wait() {
    SNAPKV_ASM("cp.async.wait_group %0;" ::"n"(n) : "memory");
}

// four 8x8 matrices of f16: lane l gives the address of row l%8 of matrix l/8 and gets elements 2*(l%4), +1 of row l/4 of each
static __device__ __forceinline__ void snapkv_ldmatrix(uint32_t (&r)[4], const char * row) {
    const uint32_t a = (uint32_t) __cvta_generic_to_shared(row);
    SNAPKV_ASM("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
}

// c[16][8] += a[16][16]*b[16][8], f16 in, f32 out
static __device__ __forceinline__ void snapkv_mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    SNAPKV_ASM("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

//
// loading
//

static __device__ __forceinline__ uint4 pack8(const float (&x)[8]) {
    return make_uint4(snapkv_pack_f16(x[0], x[1]), snapkv_pack_f16(x[2], x[3]), snapkv_pack_f16(x[4], x[5]), snapkv_pack_f16(x[6], x[7]));
}

static __device__ __forceinline__ uint4 load16(const char * p, bool wide) {
    if (wide) {
        return *reinterpret_cast<const uint4 *>(p);
    }
    const uint16_t * s = reinterpret_cast<const uint16_t *>(p);
    return make_uint4(s[0] | (uint32_t) s[1] << 16, s[2] | (uint32_t) s[3] << 16, s[4] | (uint32_t) s[5] << 16, s[6] | (uint32_t) s[7] << 16);
}

// elements 8*c .. 8*c + 7 of a row of K, as f16
static __device__ __forceinline__ uint4 load8(const char * row, int c, k_kind kind, bool wide) {
    float x[8];
    switch (kind) {
        case K_F32: {
            const uint4 a = load16(row + c * 32, wide);
            const uint4 b = load16(row + c * 32 + 16, wide);
            x[0] = __uint_as_float(a.x), x[1] = __uint_as_float(a.y), x[2] = __uint_as_float(a.z), x[3] = __uint_as_float(a.w);
            x[4] = __uint_as_float(b.x), x[5] = __uint_as_float(b.y), x[6] = __uint_as_float(b.z), x[7] = __uint_as_float(b.w);
            return pack8(x);
        }
        case K_BF16: {
            const uint4 a = load16(row + c * 16, wide);
            const uint32_t u[4] = { a.x, a.y, a.z, a.w };
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                x[2 * i] = __uint_as_float(u[i] << 16);
                x[2 * i + 1] = __uint_as_float(u[i] & 0xffff0000u);
            }
            return pack8(x);
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
            return pack8(x);
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
            return pack8(x);
        }
        default: return load16(row + c * 16, wide);
    }
}

// keys j0 .. j0 + tile_shape<D>::keys - 1, zeros where there is no such key
template <int D> static __device__ __forceinline__ void load_tile(char * tile, const score_args & a, const char * k, int j0) {
    constexpr int n_chunks = tile_shape<D>::keys * tile_shape<D>::chunks;
    if (a.kind == K_F16_ALIGNED) {
#pragma unroll 4
        for (int i = threadIdx.x; i < n_chunks; i += blockDim.x) {
            const int row = i / tile_shape<D>::chunks;
            const int c = i % tile_shape<D>::chunks;
            const int j = j0 + row;
            const bool valid = j >= 0 && j < a.n;
            snapkv_cp_async(tile + row * tile_shape<D>::stride + c * 16, valid ? k + j * a.k_nb1 + c * 16 : k, valid);
        }
        return;
    }
#pragma unroll 2
    for (int i = threadIdx.x; i < n_chunks; i += blockDim.x) {
        const int row = i / tile_shape<D>::chunks;
        const int c = i % tile_shape<D>::chunks;
        const int j = j0 + row;
        uint4 x = make_uint4(0, 0, 0, 0);
        if (j >= 0 && j < a.n) {
            x = load8(k + j * a.k_nb1, c, a.kind, a.wide);
        }
        *reinterpret_cast<uint4 *>(tile + row * tile_shape<D>::stride + c * 16) = x;
    }
}

// The tiles of a block's keys on their way through shared memory, all but one of the stages ahead of their reader. All threads
// of the block call in step.
template <int D> struct tile_queue {
    static constexpr int stages = tile_shape<D>::stages;

    const score_args & a;
    const char * k; // of the KV head
    char * tiles;   // [stages][tile_shape<D>::bytes]
    int start;      // first key
    int n_tiles;

    __device__ __forceinline__ void load(int t) const {
        if (t < n_tiles) {
            load_tile<D>(tiles + t % stages * tile_shape<D>::bytes, a, k, start + t * tile_shape<D>::keys);
        }
        snapkv_cp_async_commit(); // an empty group as well: waiting counts them
    }

    __device__ __forceinline__ void begin() const {
#pragma unroll
        for (int s = 0; s < stages - 1; ++s) {
            load(s);
        }
    }

    // tile t, 0, 1, ... in turn. Also a barrier, after which nobody reads tile t - 1 any more
    __device__ __forceinline__ const char * next(int t) const {
        snapkv_cp_async_wait<stages - 2>();
        __syncthreads();
        load(t + stages - 1);
        return tiles + t % stages * tile_shape<D>::bytes;
    }
};

// rows row0 .. row0 + 16*M - 1 of a query head as left operands of the mma
template <int D, int M> static __device__ __forceinline__ void load_q(uint32_t (&qf)[M][D / 16][4], const score_args & a, int head, int row0) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < M; ++m) {
        const int r = row0 + m * 16 + lane / 4;
        const float * q0 = reinterpret_cast<const float *>(a.q + head * a.q_nb2 + r * a.q_nb1) + lane % 4 * 2;
        const float * q1 = reinterpret_cast<const float *>(a.q + head * a.q_nb2 + (r + 8) * a.q_nb1) + lane % 4 * 2;
#pragma unroll
        for (int s = 0; s < D / 16; ++s) {
            qf[m][s][0] = r < a.w ? snapkv_pack_f16(q0[s * 16], q0[s * 16 + 1]) : 0;
            qf[m][s][1] = r + 8 < a.w ? snapkv_pack_f16(q1[s * 16], q1[s * 16 + 1]) : 0;
            qf[m][s][2] = r < a.w ? snapkv_pack_f16(q0[s * 16 + 8], q0[s * 16 + 9]) : 0;
            qf[m][s][3] = r + 8 < a.w ? snapkv_pack_f16(q1[s * 16 + 8], q1[s * 16 + 9]) : 0;
        }
    }
}

//
// logits
//

// the warp's rows times the keys from this row of the tile on, capped but not scaled
template <int D, int M> static __device__ __forceinline__ void products(acc_t<D, M> & acc, const uint32_t (&qf)[M][D / 16][4], const char * tile, const score_args & a) {
    constexpr int nt = warp_shape<D, M>::nt;
    const int lane = threadIdx.x % 32;
    // matrices of an ldmatrix: keys 0-7 with dims 0-7 and 8-15, keys 8-15 with the same
    const char * rows = tile + (lane / 16 * 8 + lane % 8) * tile_shape<D>::stride + lane / 8 % 2 * 16;

#pragma unroll
    for (int i = 0; i < M * nt; ++i) {
        float (&c)[4] = acc[i / nt][i % nt];
        c[0] = c[1] = c[2] = c[3] = 0.0f;
    }
#pragma unroll
    for (int s = 0; s < D / 16; ++s) {
#pragma unroll
        for (int t = 0; t < nt; t += 2) {
            uint32_t kf[4];
            snapkv_ldmatrix(kf, rows + t * 8 * tile_shape<D>::stride + s * 32);
#pragma unroll
            for (int m = 0; m < M; ++m) {
                snapkv_mma(acc[m][t], qf[m][s], kf[0], kf[1]);
                snapkv_mma(acc[m][t + 1], qf[m][s], kf[2], kf[3]);
            }
        }
    }
    if (a.cap != 0.0f) {
#pragma unroll
        for (int i = 0; i < M * nt * 4; ++i) {
            float & x = acc[i / 4 / nt][i / 4 % nt][i % 4];
            x = a.cap * (1.0f - __fdividef(2.0f, snapkv_exp2(x * a.tanh_scale) + 1.0f));
        }
    }
}

// puts a value where the row does not see the key: row r sees keys 0 .. n - w + r
template <int D, int M> static __device__ __forceinline__ void mask(acc_t<D, M> & acc, float value, const score_args & a, int row0, int j0) {
    const int first = a.n - a.w;
    if (j0 + warp_shape<D, M>::keys <= first + 1) {
        return;
    }
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int t = 0; t < warp_shape<D, M>::nt; ++t) {
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

#define SNAPKV_HEAD_DIMS(X) X(32) X(64) X(80) X(96) X(112) X(128) X(160) X(192) X(256) X(512) X(576)

// the M of a kernel: 32 rows of more than 128 dims do not fit the registers
template <int D, typename F> static void with_rows_per_warp(int64_t w, F && launch) {
    if constexpr (D <= 128) {
        if ((w + 15) / 16 % 2 == 0) {
            launch(std::integral_constant<int, 2>());
            return;
        }
    }
    launch(std::integral_constant<int, 1>());
}

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
template <int D, int M> static int heads_per_launch(const score_args & a) {
    const int most = max_rows(D) / (a.warps_per_head * warp_shape<D, M>::rows);
    const int n_launches = (a.g + most - 1) / most;
    return (a.g + n_launches - 1) / n_launches;
}

// blocks of the kernel that the device runs at once
template <typename... P> static int n_resident(void (*kernel)(P...), int threads, size_t smem, std::atomic<uint64_t> & prepared) {
    int device = 0;
    int n_sm = 1;
    int limit = 0;
    int blocks = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&n_sm, cudaDevAttrMultiProcessorCount, device);
    // the attributes are the kernel's on one device: set once for each, or twice if threads meet here, which does no harm
    const uint64_t bit = 1ull << (device % 64);
    if (!(prepared.load() & bit)) {
        cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit);
        cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
        prepared.fetch_or(bit);
    }
    cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, smem);
    return n_sm * (blocks > 1 ? blocks : 1);
}

// keys of a block such that all blocks run at once, each of whole tiles with `overlap` keys that others have, too
template <int D> static int range_keys(int n, int64_t max_splits, int overlap) {
    constexpr int tile = tile_shape<D>::keys;
    const int least = 4 + overlap / 16;
    const int n_splits = (int) (max_splits > 1 ? max_splits : 1);
    const int keys = (n + n_splits - 1) / n_splits;
    const int tiles = (keys + overlap + tile - 1) / tile;
    return (tiles > least ? tiles : least) * tile - overlap;
}
