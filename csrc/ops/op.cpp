#include "ops/snapkv-op.h"

#include "snapkv.h"
#include "ops/cpu.h"

#include "ggml-impl.h"

#include <algorithm>
#include <cmath>

static_assert(sizeof(ggml_custom_op_params) <= SNAPKV_OP_PARAMS_OFFSET, "ggml's own parameters come first");
static_assert(SNAPKV_OP_PARAMS_OFFSET + sizeof(snapkv_op_params) <= GGML_MAX_OP_PARAMS, "ours fit behind them");

static snapkv_op_params op_params(snapkv_op_kind kind) {
    snapkv_op_params params = {};
    params.magic = SNAPKV_OP_MAGIC;
    params.kind = kind;
    return params;
}

static ggml_tensor * finish(ggml_tensor * node, const snapkv_op_params & params, const char * name) {
    memcpy((char *) node->op_params + SNAPKV_OP_PARAMS_OFFSET, &params, sizeof(params));
    return ggml_set_name(node, name);
}

static void check_qk(const ggml_tensor * q, const ggml_tensor * k, float scale, float softcap) {
    GGML_ASSERT(k->type == GGML_TYPE_F16 || k->type == GGML_TYPE_BF16 || k->type == GGML_TYPE_F32 || k->type == GGML_TYPE_Q8_0 || k->type == GGML_TYPE_Q4_0);
    GGML_ASSERT(q->type == GGML_TYPE_F32);
    GGML_ASSERT(q->nb[0] == sizeof(float) && k->nb[0] == ggml_type_size(k->type) && "rows of q and k are contiguous");
    GGML_ASSERT(q->nb[1] % sizeof(float) == 0 && q->nb[2] % sizeof(float) == 0);

    const int64_t head_dim = k->ne[0];
    GGML_ASSERT(q->ne[0] == head_dim && head_dim >= 16 && head_dim <= SNAPKV_OP_MAX_HEAD_DIM && head_dim % 16 == 0 && "head_dim: a multiple of 16 up to 576");
    GGML_ASSERT(head_dim % ggml_blck_size(k->type) == 0 && "a head of k is whole blocks");
    GGML_ASSERT(q->ne[1] >= 1 && q->ne[1] <= SNAPKV_OP_MAX_ROWS && k->ne[1] >= q->ne[1] && "w is 1..256, n >= w");
    GGML_ASSERT(q->ne[2] % k->ne[2] == 0 && q->ne[2] / k->ne[2] <= SNAPKV_OP_MAX_GROUP && "n_head is 1..64 times n_head_kv");
    GGML_ASSERT(q->ne[3] == 1 && k->ne[3] == 1);
    GGML_ASSERT(std::isfinite(scale) && softcap >= 0.0f);
}

ggml_tensor * snapkv_op_stats(ggml_context * ctx, ggml_tensor * q, ggml_tensor * k, ggml_tensor * sinks, float scale, float softcap) {
    check_qk(q, k, scale, softcap);
    GGML_ASSERT(!sinks || (sinks->type == GGML_TYPE_F32 && sinks->ne[0] == q->ne[2] && ggml_nelements(sinks) == q->ne[2] && ggml_is_contiguous(sinks)));

    snapkv_op_params params = op_params(SNAPKV_OP_STATS);
    params.scale = scale;
    params.softcap = softcap;

    ggml_tensor * args[] = { q, k, sinks };
    ggml_tensor * res = ggml_custom_4d(ctx, GGML_TYPE_F32, 2, q->ne[1], q->ne[2], 1 + snapkv_op_n_splits(k->ne[1]),
            args, sinks ? 3 : 2, snapkv_op_cpu_stats, GGML_N_TASKS_MAX, nullptr);
    return finish(res, params, "snapkv_stats");
}

ggml_tensor * snapkv_op_votes(ggml_context * ctx, ggml_tensor * q, ggml_tensor * k, ggml_tensor * stats,
        float scale, float softcap, int32_t kernel_size, int32_t pooling, int32_t aggregation, float self_weight) {
    check_qk(q, k, scale, softcap);
    GGML_ASSERT(stats->type == GGML_TYPE_F32 && ggml_is_contiguous(stats) && stats->ne[0] == 2 && stats->ne[1] == q->ne[1] && stats->ne[2] == q->ne[2]);
    GGML_ASSERT(kernel_size >= 1 && kernel_size <= 127 && kernel_size % 2 == 1 && "kernel_size: odd, up to 127");
    GGML_ASSERT(pooling >= LLAMA_SNAPKV_POOLING_AVG && pooling <= LLAMA_SNAPKV_POOLING_NOSINK);
    GGML_ASSERT(aggregation == LLAMA_SNAPKV_AGGREGATION_SUM || aggregation == LLAMA_SNAPKV_AGGREGATION_MAX);

    snapkv_op_params params = op_params(SNAPKV_OP_VOTES);
    params.scale = scale;
    params.softcap = softcap;
    params.kernel_size = kernel_size;
    params.pooling = kernel_size == 1 ? LLAMA_SNAPKV_POOLING_AVG : pooling; // NOSINK would leave nothing of the first key
    params.aggregation = aggregation;
    params.self_weight = self_weight;

    ggml_tensor * args[] = { q, k, stats };
    ggml_tensor * res = ggml_custom_4d(ctx, GGML_TYPE_F32, k->ne[1], k->ne[2], 2, 1, args, 3, snapkv_op_cpu_votes, GGML_N_TASKS_MAX, nullptr);
    return finish(res, params, "snapkv_votes");
}

ggml_tensor * snapkv_op_select(ggml_context * ctx, ggml_tensor * votes, int32_t window, int32_t n_kept, int32_t n_sink) {
    GGML_ASSERT(votes->type == GGML_TYPE_F32 && ggml_is_contiguous(votes) && votes->ne[2] == 2 && votes->ne[3] == 1);
    GGML_ASSERT(window >= 1 && window <= votes->ne[0]);
    GGML_ASSERT(n_kept >= 0 && n_kept <= votes->ne[0] - window && "no more can be kept than the prefix has");
    GGML_ASSERT(n_sink >= 0);

    snapkv_op_params params = op_params(SNAPKV_OP_SELECT);
    params.window = window;
    params.n_sink = std::min(n_sink, n_kept);

    ggml_tensor * args[] = { votes };
    ggml_tensor * res = ggml_custom_4d(ctx, GGML_TYPE_I32, n_kept + 1, votes->ne[1], 1, 1, args, 1, snapkv_op_cpu_select, GGML_N_TASKS_MAX, nullptr);
    return finish(res, params, "snapkv_ids");
}

ggml_tensor * snapkv_op_evict(ggml_context * ctx, ggml_tensor * dst, ggml_tensor * src, ggml_tensor * ids, int32_t n_head_kv, int32_t row0) {
    GGML_ASSERT(dst->type == src->type && dst->ne[0] == src->ne[0]);
    GGML_ASSERT(ggml_is_matrix(dst) && ggml_is_matrix(src));
    GGML_ASSERT(dst->nb[0] == ggml_type_size(dst->type) && src->nb[0] == dst->nb[0] && "rows are contiguous");
    GGML_ASSERT(ids->type == GGML_TYPE_I32 && ggml_is_contiguous(ids) && ids->ne[1] == n_head_kv && ggml_is_matrix(ids));
    GGML_ASSERT(n_head_kv >= 1 && src->ne[0] % (n_head_kv * ggml_blck_size(src->type)) == 0 && "a head is whole blocks");
    GGML_ASSERT(ggml_row_size(src->type, src->ne[0] / n_head_kv) % 2 == 0);

    const int64_t n_rows0 = dst->ne[1] - (ids->ne[0] - 1);
    GGML_ASSERT(n_rows0 >= 0 && row0 >= 0 && row0 + n_rows0 <= src->ne[1] && "the window lies in the cache");

    snapkv_op_params params = op_params(SNAPKV_OP_EVICT);
    params.window = row0;

    ggml_tensor * args[] = { src, ids };
    ggml_tensor * res = ggml_custom_inplace(ctx, dst, args, 2, snapkv_op_cpu_evict, GGML_N_TASKS_MAX, nullptr);
    return finish(res, params, "snapkv_evict");
}
