// Arguments of the kernels in snapkv.metal, laid out the same by both compilers: 64-bit members first.
#pragma once

#ifndef __METAL_VERSION__
#include <stdint.h>
#endif

// query rows that a thread multiplies with its key; a unit is that many rows of one query head
#define SNAPKV_METAL_UNIT 4

// floats of a key in threadgroup memory: four more than it has, so that neighbouring threads read from different banks
#define SNAPKV_METAL_STRIDE(head_dim) ((head_dim) + 4)

enum snapkv_metal_k_type {
    SNAPKV_METAL_F32 = 0,
    SNAPKV_METAL_F16 = 1,
    SNAPKV_METAL_BF16 = 2,
    SNAPKV_METAL_Q8_0 = 3,
    SNAPKV_METAL_Q4_0 = 4,
};

// enum llama_snapkv_pooling
enum snapkv_metal_pooling {
    SNAPKV_METAL_POOLING_AVG = 0,
    SNAPKV_METAL_POOLING_MAX = 1,
    SNAPKV_METAL_POOLING_NOSINK = 2,
};

// STATS, its merge, and VOTES
struct snapkv_metal_scoring_args {
    uint64_t nbq1; // bytes from a row of q to the next
    uint64_t nbq2; // and from a head to the next
    uint64_t nbk1;
    uint64_t nbk2;
    int32_t k_type; // enum snapkv_metal_k_type
    int32_t head_dim;
    int32_t n;
    int32_t w;
    int32_t n_head_kv;
    int32_t g;    // query heads of a KV head
    int32_t tile; // keys in threadgroup memory at once; divides the threads of a threadgroup
    float scale;
    float softcap;
    int32_t n_splits;  // STATS: ranges of keys
    int32_t has_sinks; // STATS
    int32_t cols;      // VOTES: columns of a threadgroup, the pooling's borders included; a multiple of tile
    int32_t kernel_size; // VOTES: odd
    int32_t pooling;   // VOTES: enum snapkv_metal_pooling
    int32_t reduce_max; // VOTES: else sum
    float self_weight; // VOTES: share of a key's own vote
};

struct snapkv_metal_select_args {
    int32_t n;
    int32_t n_head_kv;
    int32_t w;
    int32_t n_kept;
    int32_t n_sink;
};

struct snapkv_metal_evict_args {
    uint64_t nb_dst; // bytes from a row to the next
    uint64_t nb_src;
    uint32_t row_bytes;
    uint32_t head_bytes;
    uint32_t unit; // bytes of one copy: 2, 4, 8 or 16
    int32_t n_kept;
    int32_t row0;
};
