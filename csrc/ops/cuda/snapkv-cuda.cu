// Which nodes the device runs, and their dispatch.
#include "snapkv-cuda.h"
#include "snapkv-common.cuh"

#include <cstdlib>

#ifndef GGML_USE_HIP
static __global__ void snapkv_architecture_kernel() {}

bool snapkv_cuda_has_mma() {
    // what the build has for this device: a build for older ones runs on newer ones, too
    cudaFuncAttributes attributes;
    if (cudaFuncGetAttributes(&attributes, snapkv_architecture_kernel) != cudaSuccess || attributes.ptxVersion < 80) {
        return false;
    }
    return !getenv("SNAPKV_TEST_NO_MMA"); // tests: as on older devices
}
#endif

static bool supports_score(const snapkv_op_params & params, const ggml_tensor * op) {
    const ggml_tensor * q = op->src[0];
    const ggml_tensor * k = op->src[1];
    if (!q || !k || q->type != GGML_TYPE_F32 || op->type != GGML_TYPE_F32 || !ggml_is_contiguous(op)) {
        return false;
    }
    const int64_t head_dim = k->ne[0];
    if (head_dim < 16 || head_dim > SNAPKV_OP_MAX_HEAD_DIM || head_dim % 16 != 0) {
        return false;
    }
    switch (k->type) {
        case GGML_TYPE_F32:
        case GGML_TYPE_F16:
        case GGML_TYPE_BF16: break;
        case GGML_TYPE_Q8_0:
        case GGML_TYPE_Q4_0:
            if (head_dim % 32 != 0) {
                return false;
            }
            break;
        default: return false;
    }
    const int64_t n = k->ne[1];
    const int64_t n_head_kv = k->ne[2];
    const int64_t w = q->ne[1];
    const int64_t n_head = q->ne[2];
    if (q->ne[0] != head_dim || q->nb[0] != sizeof(float) || k->nb[0] != ggml_type_size(k->type) ||
            q->ne[3] != 1 || k->ne[3] != 1) {
        return false;
    }
    if (w < 1 || w > SNAPKV_OP_MAX_ROWS || n < w || n > INT32_MAX / 2 || n_head_kv < 1 || n_head_kv > 65535 || n_head % n_head_kv != 0 ||
            n_head / n_head_kv > SNAPKV_OP_MAX_GROUP) {
        return false;
    }
    if (params.kind == SNAPKV_OP_STATS) {
        const ggml_tensor * sinks = op->src[2];
        return op->ne[3] >= 2 && (!sinks || (sinks->type == GGML_TYPE_F32 && ggml_is_contiguous(sinks)));
    }
    const ggml_tensor * stats = op->src[2];
    return stats && stats->type == GGML_TYPE_F32 && ggml_is_contiguous(stats) && params.kernel_size >= 1 && params.kernel_size <= 127 && params.kernel_size % 2 == 1;
}

static bool supports_select(const ggml_tensor * op) {
    const ggml_tensor * votes = op->src[0];
    return votes && votes->type == GGML_TYPE_F32 && ggml_is_contiguous(votes) && votes->ne[0] <= INT32_MAX / 2 && op->type == GGML_TYPE_I32 &&
            ggml_is_contiguous(op);
}

static bool supports_evict(const ggml_tensor * op) {
    const ggml_tensor * src = op->src[1];
    const ggml_tensor * ids = op->src[2];
    return src && ids && src->type == op->type && ids->type == GGML_TYPE_I32 && ggml_is_contiguous(ids) &&
            ggml_row_size(op->type, op->ne[0]) % (2 * ids->ne[1]) == 0 && op->nb[1] % 2 == 0 && src->nb[1] % 2 == 0;
}

bool snapkv_cuda_supports_op(int, const ggml_tensor * op) {
    snapkv_op_params params;
    if (!snapkv_op_get_params(op, &params)) {
        return false;
    }
    switch (params.kind) {
        case SNAPKV_OP_STATS:
        case SNAPKV_OP_VOTES: return supports_score(params, op);
        case SNAPKV_OP_SELECT: return supports_select(op);
        case SNAPKV_OP_EVICT: return supports_evict(op);
        default: return false;
    }
}

bool snapkv_cuda_compute(void * stream, ggml_tensor * op) {
    snapkv_op_params params;
    if (!snapkv_op_get_params(op, &params)) {
        return false;
    }
    cudaStream_t s = (cudaStream_t) stream;
    switch (params.kind) {
        case SNAPKV_OP_STATS: snapkv_cuda_stats(s, params, op); return true;
        case SNAPKV_OP_VOTES: snapkv_cuda_votes(s, params, op); return true;
        case SNAPKV_OP_SELECT: snapkv_cuda_select(s, params, op); return true;
        case SNAPKV_OP_EVICT: snapkv_cuda_evict(s, params, op); return true;
        default: return false;
    }
}
