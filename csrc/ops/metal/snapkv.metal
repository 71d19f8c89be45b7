// Kernels of the fused ops (csrc/ops/snapkv-op.h). csrc/tests/test-snapkv-metal.cpp compiles this file as C++.
//
// Scoring: a threadgroup holds a tile of keys as f32 in threadgroup memory. A thread is one key of the tile and one unit of
// query rows, whose products it sums in registers; it needs no SIMD-group functions, so any width of SIMD group will do.
// ggml compiles run-time sources with fast math, where NaN and infinity are undefined: none is needed here, and SELECT
// reads its votes as integers.
#ifdef __METAL_VERSION__
// ggml takes a warning of the run-time compiler for an error
#pragma clang diagnostic ignored "-Weverything"
#include <metal_stdlib>
using namespace metal;
#define THREADGROUP_MEMORY [[threadgroup(0)]]
#else
#define THREADGROUP_MEMORY // the word before it is a macro there
#endif

#include "snapkv-metal-args.h"

// maximum of no logits at all: finite, and exp(NO_LOGIT - x) is 0 for any logit x
#define NO_LOGIT -1e38f

// elements 16*c .. 16*c + 15 of a row of K
static inline void load16(device const char * row, int type, int c, threadgroup float * dst) {
    switch (type) {
        case SNAPKV_METAL_F32: {
            device const float * x = (device const float *) row + 16 * c;
            for (int i = 0; i < 16; ++i) {
                dst[i] = x[i];
            }
        } break;
        case SNAPKV_METAL_F16: {
            device const half * x = (device const half *) row + 16 * c;
            for (int i = 0; i < 16; ++i) {
                dst[i] = float(x[i]);
            }
        } break;
        case SNAPKV_METAL_BF16: { // as integers, so that the device needs no bfloat
            device const ushort * x = (device const ushort *) row + 16 * c;
            for (int i = 0; i < 16; ++i) {
                dst[i] = as_type<float>(uint(x[i]) << 16);
            }
        } break;
        case SNAPKV_METAL_Q8_0: { // blocks of 32: a half and 32 bytes
            device const char * block = row + 34 * (c / 2);
            device const int8_t * x = (device const int8_t *) (block + 2) + 16 * (c % 2);
            const float d = float(*(device const half *) block);
            for (int i = 0; i < 16; ++i) {
                dst[i] = d * float(x[i]);
            }
        } break;
        case SNAPKV_METAL_Q4_0: { // blocks of 32: a half and 16 bytes, whose high nibbles are the second 16 elements
            device const char * block = row + 18 * (c / 2);
            device const uint8_t * x = (device const uint8_t *) (block + 2);
            const float d = float(*(device const half *) block);
            const int shift = 4 * (c % 2);
            for (int i = 0; i < 16; ++i) {
                dst[i] = d * float(((int(x[i]) >> shift) & 15) - 8);
            }
        } break;
    }
}

// keys j0 .. j0 + tile of a KV head, those outside of [lo, hi) left out
static inline void load_tile(constant snapkv_metal_scoring_args & args, device const char * k, int j0, int lo, int hi,
        threadgroup float * tile, int tid, int nth) {
    const int chunks = args.head_dim / 16;
    for (int i = tid; i < args.tile * chunks; i += nth) {
        const int key = i / chunks;
        const int c = i % chunks;
        const int j = j0 + key;
        if (j >= lo && j < hi) {
            load16(k + ulong(j) * args.nbk1, args.k_type, c, tile + key * SNAPKV_METAL_STRIDE(args.head_dim) + 16 * c);
        }
    }
}

// logits of rows i0 .. i0 + 3 with a key; a row past the window repeats the last one. Rows are packed, since a view of q
// need not be aligned to more than a float
static inline float4 logits(constant snapkv_metal_scoring_args & args, device const char * q, int i0, threadgroup const float * key) {
    threadgroup const float4 * k4 = (threadgroup const float4 *) key;
    device const packed_float4 * q0 = (device const packed_float4 *) (q + ulong(i0) * args.nbq1);
    device const packed_float4 * q1 = (device const packed_float4 *) (q + ulong(min(i0 + 1, args.w - 1)) * args.nbq1);
    device const packed_float4 * q2 = (device const packed_float4 *) (q + ulong(min(i0 + 2, args.w - 1)) * args.nbq1);
    device const packed_float4 * q3 = (device const packed_float4 *) (q + ulong(min(i0 + 3, args.w - 1)) * args.nbq1);

    float4 x = float4(0.0f);
    for (int d = 0; d < args.head_dim / 4; ++d) {
        const float4 kd = k4[d];
        x += float4(dot(kd, float4(q0[d])), dot(kd, float4(q1[d])), dot(kd, float4(q2[d])), dot(kd, float4(q3[d])));
    }
    x *= args.scale;
    if (args.softcap != 0.0f) {
        for (int r = 0; r < SNAPKV_METAL_UNIT; ++r) {
            x[r] = args.softcap * precise::tanh(x[r] / args.softcap); // fast::tanh is NaN for large arguments
        }
    }
    return x;
}

// two (maximum, sum of exp(logit - maximum)) as one
static inline float2 combine(float2 a, float2 b) {
    const float m = max(a.x, b.x);
    return float2(m, a.y * precise::exp(a.x - m) + b.y * precise::exp(b.x - m));
}

// STATS of one range of keys: threadgroup (range, KV head, block of units)
kernel void snapkv_stats(
        constant snapkv_metal_scoring_args & args [[buffer(0)]],
        device const char * q [[buffer(1)]],
        device const char * k [[buffer(2)]],
        device float2 * stats [[buffer(3)]],
        threadgroup float * shmem THREADGROUP_MEMORY,
        uint3 tgpig [[threadgroup_position_in_grid]],
        uint tiitg [[thread_index_in_threadgroup]],
        uint3 ntg [[threads_per_threadgroup]]) {
    const int tid = int(tiitg);
    const int nth = int(ntg.x);
    const int key = tid % args.tile;
    const int n_units = nth / args.tile; // of this threadgroup
    const int split = int(tgpig.x);
    const int head_kv = int(tgpig.y);
    const int unit0 = int(tgpig.z) * n_units;

    const int head_units = (args.w + SNAPKV_METAL_UNIT - 1) / SNAPKV_METAL_UNIT;
    const int unit = unit0 + tid / args.tile;
    const int h = unit / head_units;
    const int i0 = unit % head_units * SNAPKV_METAL_UNIT;

    const int len = (args.n + args.n_splits - 1) / args.n_splits;
    const int lo = split * len;
    const int hi = min(args.n, lo + len);
    const int last = args.n - args.w + i0; // key that row i0 still sees

    device const char * k_head = k + ulong(head_kv) * args.nbk2;
    device const char * q_head = q + ulong(head_kv * args.g + h) * args.nbq2;

    float4 m = float4(NO_LOGIT);
    float4 s = float4(0.0f);
    for (int j0 = lo; j0 < hi; j0 += args.tile) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        load_tile(args, k_head, j0, lo, hi, shmem, tid, nth);
        threadgroup_barrier(mem_flags::mem_threadgroup);

        const int j = j0 + key;
        if (h < args.g && j < hi) {
            const float4 x = logits(args, q_head, i0, shmem + key * SNAPKV_METAL_STRIDE(args.head_dim));
            for (int r = 0; r < SNAPKV_METAL_UNIT; ++r) {
                if (j <= last + r) {
                    const float e = precise::exp(-fabs(x[r] - m[r]));
                    s[r] = x[r] > m[r] ? s[r] * e + 1.0f : s[r] + e;
                    m[r] = max(m[r], x[r]);
                }
            }
        }
    }

    // over the keys of the tile; the tile itself is done with
    threadgroup float2 * part = (threadgroup float2 *) shmem;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (int r = 0; r < SNAPKV_METAL_UNIT; ++r) {
        part[(tid / args.tile * SNAPKV_METAL_UNIT + r) * args.tile + key] = float2(m[r], s[r]);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    for (int row = tid; row < n_units * SNAPKV_METAL_UNIT; row += nth) {
        const int u = unit0 + row / SNAPKV_METAL_UNIT;
        const int i = u % head_units * SNAPKV_METAL_UNIT + row % SNAPKV_METAL_UNIT;
        if (u / head_units < args.g && i < args.w) {
            float2 res = float2(NO_LOGIT, 0.0f);
            for (int t = 0; t < args.tile; ++t) {
                res = combine(res, part[row * args.tile + t]);
            }
            const int head = head_kv * args.g + u / head_units;
            stats[((1 + split) * args.n_head_kv * args.g + head) * args.w + i] = res;
        }
    }
}

// STATS of all ranges and the sinks: a thread is a row
kernel void snapkv_stats_merge(
        constant snapkv_metal_scoring_args & args [[buffer(0)]],
        device const float * sinks [[buffer(1)]],
        device float2 * stats [[buffer(2)]],
        uint3 tgpig [[threadgroup_position_in_grid]],
        uint tiitg [[thread_index_in_threadgroup]],
        uint3 ntg [[threads_per_threadgroup]]) {
    const int n_rows = args.w * args.n_head_kv * args.g;
    const int row = int(tgpig.x * ntg.x + tiitg);
    if (row >= n_rows) {
        return;
    }
    float2 res = float2(NO_LOGIT, 0.0f);
    if (args.has_sinks) {
        res = float2(sinks[row / args.w], 1.0f);
    }
    for (int split = 0; split < args.n_splits; ++split) {
        res = combine(res, stats[(1 + split) * n_rows + row]);
    }
    stats[row] = res;
}

// VOTES: threadgroup (block of columns, KV head). Each block also computes the columns that its pooling reaches into
kernel void snapkv_votes(
        constant snapkv_metal_scoring_args & args [[buffer(0)]],
        device const char * q [[buffer(1)]],
        device const char * k [[buffer(2)]],
        device const float2 * stats [[buffer(3)]],
        device float * out [[buffer(4)]],
        threadgroup float * shmem THREADGROUP_MEMORY,
        uint3 tgpig [[threadgroup_position_in_grid]],
        uint tiitg [[thread_index_in_threadgroup]],
        uint3 ntg [[threads_per_threadgroup]]) {
    const int tid = int(tiitg);
    const int nth = int(ntg.x);
    const int key = tid % args.tile;
    const int n_units = nth / args.tile; // of one round
    const int head_kv = int(tgpig.y);
    const int head_units = (args.w + SNAPKV_METAL_UNIT - 1) / SNAPKV_METAL_UNIT;

    const int n_out = args.cols - (args.kernel_size - 1);
    const int out0 = int(tgpig.x) * n_out;
    const int col0 = out0 - args.kernel_size / 2; // may be negative
    const int n_prefix = args.n - args.w;

    threadgroup float2 * part = (threadgroup float2 *) (shmem + args.tile * SNAPKV_METAL_STRIDE(args.head_dim)); // [nth] sum, maximum
    threadgroup float * votes = (threadgroup float *) (part + nth);                                              // [g][cols]
    threadgroup float * mass = votes + args.g * args.cols;                                                       // [cols]

    device const char * k_head = k + ulong(head_kv) * args.nbk2;

    for (int i = tid; i < (args.g + 1) * args.cols; i += nth) {
        votes[i] = 0.0f;
    }
    for (int c0 = 0; c0 < args.cols; c0 += args.tile) {
        if (col0 + c0 + args.tile <= 0 || col0 + c0 >= args.n) {
            continue;
        }
        load_tile(args, k_head, col0 + c0, 0, args.n, shmem, tid, nth);
        threadgroup_barrier(mem_flags::mem_threadgroup);

        const int j = col0 + c0 + key;
        for (int unit0 = 0; unit0 < args.g * head_units; unit0 += n_units) {
            const int unit = unit0 + tid / args.tile;
            const int h = unit / head_units;
            const int i0 = unit % head_units * SNAPKV_METAL_UNIT;
            float2 vote = float2(0.0f);
            if (h < args.g && j >= 0 && j < args.n) {
                const int head = head_kv * args.g + h;
                const float4 x = logits(args, q + ulong(head) * args.nbq2, i0, shmem + key * SNAPKV_METAL_STRIDE(args.head_dim));
                for (int r = 0; r < SNAPKV_METAL_UNIT; ++r) {
                    const int i = i0 + r;
                    if (i < args.w && j <= n_prefix + i) {
                        const float2 row = stats[head * args.w + i];
                        const float p = precise::exp(x[r] - row.x) / row.y;
                        vote = float2(vote.x + p, max(vote.y, p));
                    }
                }
            }
            part[tid] = vote;
            threadgroup_barrier(mem_flags::mem_threadgroup);

            // over the units of the round, in their order: there are no float atomics, and none that would be deterministic
            if (tid < args.tile) {
                for (int u = 0; u < n_units && unit0 + u < args.g * head_units; ++u) {
                    const float2 add = part[u * args.tile + tid];
                    mass[c0 + tid] += add.x;
                    if (j < n_prefix) { // the window gets no votes, to the pooling it is zeros
                        threadgroup float * sum = votes + (unit0 + u) / head_units * args.cols + c0 + tid;
                        *sum = args.reduce_max ? max(*sum, add.y) : *sum + add.x;
                    }
                }
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
        }
    }

    for (int c = tid; c < n_out; c += nth) {
        const int j = out0 + c;
        if (j >= args.n) {
            break;
        }
        float pooled = 0.0f;
        if (j < n_prefix) {
            for (int h = 0; h < args.g; ++h) {
                float sum = 0.0f;
                float top = 0.0f;
                for (int t = 0; t < args.kernel_size; ++t) {
                    const bool is_sink = j + t == args.kernel_size / 2; // the first key
                    const float v = args.pooling == SNAPKV_METAL_POOLING_NOSINK && is_sink ? 0.0f : votes[h * args.cols + c + t];
                    sum += v;
                    top = max(top, v);
                }
                pooled += (args.pooling == SNAPKV_METAL_POOLING_MAX ? top : sum / float(args.kernel_size)) + args.self_weight * votes[h * args.cols + c + args.kernel_size / 2];
            }
        }
        out[ulong(head_kv) * ulong(args.n) + ulong(j)] = pooled / float(args.g);
        out[ulong(args.n_head_kv + head_kv) * ulong(args.n) + ulong(j)] = mass[c + args.kernel_size / 2] / float(args.g);
    }
}

// a vote as an integer of the same order: sinks first, -0 equal to 0, NaN last
static inline uint vote_rank(uint bits, bool is_sink) {
    if (is_sink) {
        return 0xffffffffu;
    }
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return 0u;
    }
    if (bits == 0x80000000u) {
        bits = 0u;
    }
    return (bits & 0x80000000u) != 0u ? ~bits : bits | 0x80000000u;
}

// SELECT: a threadgroup is a KV head. Radix select of the lowest rank that is kept, 8 bits at a time; then each thread
// writes the ids of a stretch of positions, which leaves them ascending
kernel void snapkv_select(
        constant snapkv_metal_select_args & args [[buffer(0)]],
        device const uint * votes [[buffer(1)]],
        device int * ids [[buffer(2)]],
        threadgroup uint * shmem THREADGROUP_MEMORY,
        uint3 tgpig [[threadgroup_position_in_grid]],
        uint tiitg [[thread_index_in_threadgroup]],
        uint3 ntg [[threads_per_threadgroup]]) {
    const int tid = int(tiitg);
    const int nth = int(ntg.x);
    const int head_kv = int(tgpig.x);
    const int n_prefix = args.n - args.w;

    threadgroup atomic_uint * histogram = (threadgroup atomic_uint *) shmem; // [256]
    threadgroup uint * found = shmem + 256;                                  // [2]
    threadgroup uint2 * counts = (threadgroup uint2 *) (shmem + 260);        // [nth] above the threshold, equal to it
    threadgroup float2 * masses = (threadgroup float2 *) (counts + nth);     // [nth] kept, dropped

    device const uint * pooled = votes + ulong(head_kv) * ulong(args.n);
    device const float * mass = (device const float *) (votes + ulong(args.n_head_kv + head_kv) * ulong(args.n));
    device int * out = ids + ulong(head_kv) * ulong(args.n_kept + 1);

    uint threshold = 0u;
    uint wanted = uint(args.n_kept); // of those that are equal to the threshold in the bits known so far
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int i = tid; i < 256; i += nth) {
            atomic_store_explicit(&histogram[i], 0u, memory_order_relaxed);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);

        const uint known = shift == 24 ? 0u : 0xffffffffu << uint(shift + 8);
        for (int j = tid; j < n_prefix; j += nth) {
            const uint rank = vote_rank(pooled[j], j < args.n_sink);
            if ((rank & known) == threshold) {
                atomic_fetch_add_explicit(&histogram[(rank >> uint(shift)) & 255u], 1u, memory_order_relaxed);
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);

        if (tid == 0) {
            uint above = 0u;
            int bin = 255;
            for (; bin > 0; --bin) {
                const uint count = atomic_load_explicit(&histogram[bin], memory_order_relaxed);
                if (above + count >= wanted) {
                    break;
                }
                above += count;
            }
            found[0] = uint(bin);
            found[1] = above;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);

        threshold |= found[0] << uint(shift);
        wanted -= found[1];
    }

    const int len = (args.n + nth - 1) / nth;
    const int j0 = min(args.n, tid * len);
    const int j1 = min(args.n, j0 + len);

    uint2 count = uint2(0u, 0u);
    for (int j = j0; j < min(j1, n_prefix); ++j) {
        const uint rank = vote_rank(pooled[j], j < args.n_sink);
        count += uint2(rank > threshold ? 1u : 0u, rank == threshold ? 1u : 0u);
    }
    counts[tid] = count;
    threadgroup_barrier(mem_flags::mem_threadgroup);

    if (tid == 0) {
        uint2 before = uint2(0u, 0u);
        for (int t = 0; t < nth; ++t) {
            const uint2 c = counts[t];
            counts[t] = before;
            before += c;
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    uint equal = counts[tid].y;
    uint pos = counts[tid].x + min(equal, wanted);
    float2 share = float2(0.0f);
    for (int j = j0; j < j1; ++j) {
        bool keep = true;
        if (j < n_prefix) {
            const uint rank = vote_rank(pooled[j], j < args.n_sink);
            keep = rank > threshold || (rank == threshold && equal < wanted);
            equal += rank == threshold ? 1u : 0u;
            if (keep) {
                out[pos] = j;
                pos += 1u;
            }
        }
        share += keep ? float2(mass[j], 0.0f) : float2(0.0f, mass[j]);
    }
    masses[tid] = share;
    threadgroup_barrier(mem_flags::mem_threadgroup);

    if (tid == 0) {
        float2 sum = float2(0.0f);
        for (int t = 0; t < nth; ++t) {
            sum += masses[t];
        }
        const float all = sum.x + sum.y;
        out[args.n_kept] = as_type<int>(all > 0.0f ? clamp(sum.x / all, 0.0f, 1.0f) : 1.0f);
    }
}

// EVICT: threadgroup (block of units, destination row)
kernel void snapkv_evict(
        constant snapkv_metal_evict_args & args [[buffer(0)]],
        device const char * src [[buffer(1)]],
        device const int * ids [[buffer(2)]],
        device char * dst [[buffer(3)]],
        uint3 tgpig [[threadgroup_position_in_grid]],
        uint tiitg [[thread_index_in_threadgroup]],
        uint3 ntg [[threads_per_threadgroup]]) {
    const uint offset = (tgpig.x * ntg.x + tiitg) * args.unit;
    if (offset >= args.row_bytes) {
        return;
    }
    const int row = int(tgpig.y);
    int from = args.row0 + row - args.n_kept;
    if (row < args.n_kept) {
        from = ids[ulong(offset / args.head_bytes) * ulong(args.n_kept + 1) + ulong(row)];
    }
    device const char * s = src + ulong(from) * args.nb_src + offset;
    device char * d = dst + ulong(row) * args.nb_dst + offset;
    switch (args.unit) {
        case 16: *(device uint4 *) d = *(device const uint4 *) s; break;
        case 8: *(device uint2 *) d = *(device const uint2 *) s; break;
        case 4: *(device uint *) d = *(device const uint *) s; break;
        default: *(device ushort *) d = *(device const ushort *) s; break;
    }
}
