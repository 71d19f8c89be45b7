// Logits on tensor cores, in f16 with f32 sums (as llama.cpp's flash attention multiplies Q and K): compute capability 8.0 and later.
//
// K goes through shared memory in tiles; a warp has its Q in registers for the whole range. A block has up to 256 rows, so that a
// whole head fits. M = 2 reads shared memory half as often; it needs registers for 32 rows and an even number of 16 rows a head.
// Heads of 512 and 576 take half of the rows, of the keys and of the results at once: their Q alone is 128 registers or more, their
// tile would be 65 KB.
#pragma once

#include "snapkv-score.cuh"

template <int D> struct tile_shape {
    static constexpr int keys = D <= 256 ? 64 : 32;
    static constexpr int chunks = D / 8;           // of 8 elements, 16 bytes
    static constexpr int stride = D * 2 + 16;      // bytes; an odd number of chunks: ldmatrix's 8 rows meet all banks
    static constexpr int stages = D <= 160 ? 3 : 2; // with the rest below 99 KB, the limit of compute capability 8.6
    static constexpr int bytes = keys * stride;
};

//
// instructions
//

static __device__ __forceinline__ uint32_t snapkv_pack_f16(float lo, float hi) {
    const __half2 h = __floats2half2_rn(lo, hi);
    return *reinterpret_cast<const uint32_t *>(&h);
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

struct to_f16 {
    __device__ __forceinline__ uint4 operator()(const float (&x)[8]) const {
        return make_uint4(snapkv_pack_f16(x[0], x[1]), snapkv_pack_f16(x[2], x[3]), snapkv_pack_f16(x[4], x[5]), snapkv_pack_f16(x[6], x[7]));
    }
    __device__ __forceinline__ uint4 operator()(uint4 x) const { return x; }
};

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
            x = load8(k + j * a.k_nb1, c, a.kind, a.wide, to_f16());
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

//
// logits
//

// query rows of a block
static constexpr int mma_max_rows(int64_t head_dim) {
    return head_dim <= 256 ? 256 : 128;
}

template <int D, int M_> struct mma_logits {
    static constexpr int M = M_;
    static constexpr int rows = 16 * M;
    static constexpr int nt = (D <= 256 ? 8 : 4) / M; // for as many accumulators with either M
    static constexpr int keys = 8 * nt;
    static constexpr int tile_keys = tile_shape<D>::keys;
    static constexpr int max_rows = mma_max_rows(D);
    static constexpr int max_threads = max_rows / rows * 32;
    static constexpr int min_blocks = D <= 256 ? 512 / max_threads : 1; // of a multiprocessor

    static constexpr __host__ __device__ size_t shared_bytes(int) { return tile_shape<D>::stages * tile_shape<D>::bytes; }

    const score_args & a;
    tile_queue<D> queue;
    uint32_t qf[M][D / 16][4]; // left operands of the mma
    const char * tile;

    __device__ __forceinline__ mma_logits(const score_args & a, const char * k, char * memory, int start, int n_tiles) :
        a(a), queue{ a, k, memory, start, n_tiles } {}

    __device__ __forceinline__ void begin(int head, int row0) {
        queue.begin();
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

    __device__ __forceinline__ void next(int t) { tile = queue.next(t); }

    __device__ __forceinline__ void products(acc_of<mma_logits> & acc, int j) const {
        const int lane = threadIdx.x % 32;
        // matrices of an ldmatrix: keys 0-7 with dims 0-7 and 8-15, keys 8-15 with the same
        const char * from = tile + j * tile_shape<D>::stride + (lane / 16 * 8 + lane % 8) * tile_shape<D>::stride + lane / 8 % 2 * 16;

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
                snapkv_ldmatrix(kf, from + t * 8 * tile_shape<D>::stride + s * 32);
#pragma unroll
                for (int m = 0; m < M; ++m) {
                    snapkv_mma(acc[m][t], qf[m][s], kf[0], kf[1]);
                    snapkv_mma(acc[m][t + 1], qf[m][s], kf[2], kf[3]);
                }
            }
        }
        cap_products<mma_logits>(acc, a);
    }
};
