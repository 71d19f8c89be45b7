#include "evict/stock.h"

#include "ops/snapkv-op.h"
#include "upstream/devices.h"

#include "ggml-impl.h"

static constexpr int64_t MAX_PART = 16; // query heads

int64_t llama_snapkv_n_parts(int64_t n_head, int64_t n_head_kv) {
    if (n_head_kv > 1) {
        return 1;
    }
    int64_t n_parts = (n_head + MAX_PART - 1) / MAX_PART;
    while (n_head % n_parts != 0) {
        ++n_parts;
    }
    return n_parts;
}

// mean over ne1: [n, g] -> [n]
static ggml_tensor * mean_of_rows(ggml_context * ctx, ggml_tensor * t) {
    const int64_t n = t->ne[0];
    const int64_t g = t->ne[1];
    if (g == 1) {
        return ggml_reshape_1d(ctx, t, n);
    }
    ggml_tensor * sum = ggml_sum_rows(ctx, ggml_cont(ctx, ggml_transpose(ctx, t)));
    return ggml_scale(ctx, ggml_reshape_1d(ctx, sum, n), 1.0f / g);
}

// [n, g] -> [n, g], stride 1, borders count as zeros. ggml_pool_1d(AVG) with its own padding would divide by the
// valid cells only; scores are not negative, so that zeros serve MAX, too
static ggml_tensor * pool(ggml_context * ctx, ggml_tensor * t, const llama_snapkv_params & params) {
    if (params.kernel_size == 1) {
        return t;
    }
    const int half = (int) params.kernel_size / 2;
    int left = half;
    if (params.pooling == LLAMA_SNAPKV_POOLING_NOSINK) {
        if (t->ne[0] == 1) {
            return ggml_scale(ctx, t, 0.0f);
        }
        // a zero of the padding for the first key
        t = ggml_cont(ctx, ggml_view_2d(ctx, t, t->ne[0] - 1, t->ne[1], t->nb[1], t->nb[0]));
        ++left;
    }
    ggml_tensor * padded = ggml_pad_ext(ctx, t, left, half, 0, 0, 0, 0, 0, 0);
    const ggml_op_pool kind = params.pooling == LLAMA_SNAPKV_POOLING_MAX ? GGML_OP_POOL_MAX : GGML_OP_POOL_AVG;
    return ggml_pool_1d(ctx, padded, kind, params.kernel_size, 1, 0);
}

// what positions are ranked by: [n, g] -> [n, g]
static ggml_tensor * score(ggml_context * ctx, ggml_tensor * votes, const llama_snapkv_params & params) {
    ggml_tensor * pooled = pool(ctx, votes, params);
    return params.self_weight == 0.0f ? pooled : ggml_add(ctx, pooled, ggml_scale(ctx, votes, params.self_weight));
}

static ggml_tensor * output(ggml_cgraph * gf, ggml_tensor * t) {
    ggml_set_output(t);
    ggml_build_forward_expand(gf, t);
    return t;
}

llama_snapkv_votes llama_snapkv_graph_score(ggml_context * ctx, ggml_cgraph * gf, const llama_snapkv_observation & obs, const llama_snapkv_params & params) {
    ggml_tensor * q = obs.q;
    ggml_tensor * k = obs.k;

    const int64_t n_head_kv = k->ne[2];
    const int64_t g = q->ne[2] / n_head_kv; // query heads of a KV head
    const int64_t n = k->ne[1];
    const int64_t w = q->ne[1];

    llama_snapkv_votes votes;
    for (int64_t h = 0; h < n_head_kv; ++h) {
        ggml_tensor * qh = ggml_view_3d(ctx, q, q->ne[0], w, g, q->nb[1], q->nb[2], h * g * q->nb[2]);
        ggml_tensor * kh = ggml_view_2d(ctx, k, k->ne[0], n, k->nb[1], h * k->nb[2]);

        // in f32: with K in another type ggml would round Q to that type's dot-product partner, down to 8 bits
        kh = kh->type == GGML_TYPE_F32 ? kh : ggml_cast(ctx, kh, GGML_TYPE_F32);

        ggml_tensor * kq = ggml_mul_mat(ctx, kh, qh); // [n, w, g]
        ggml_prec_set_acc(kq, GGML_PREC_F32);
        float scale = obs.scale;
        if (obs.softcap != 0.0f) {
            kq = ggml_scale(ctx, ggml_tanh(ctx, ggml_scale(ctx, kq, scale / obs.softcap)), obs.softcap);
            scale = 1.0f;
        }
        kq = ggml_soft_max_ext(ctx, kq, obs.mask, scale, 0.0f);
        if (obs.sinks) {
            ggml_soft_max_add_sinks(kq, ggml_view_1d(ctx, obs.sinks, g, h * g * obs.sinks->nb[0]));
        }

        // vote over the window's rows
        ggml_tensor * t = ggml_cont(ctx, ggml_permute(ctx, kq, 1, 0, 2, 3)); // [w, n, g]
        ggml_tensor * sum = ggml_reshape_2d(ctx, ggml_sum_rows(ctx, t), n, g);
        ggml_tensor * vote = sum;
        if (params.aggregation == LLAMA_SNAPKV_AGGREGATION_MAX) {
            vote = ggml_reshape_2d(ctx, ggml_pool_1d(ctx, t, GGML_OP_POOL_MAX, (int) w, (int) w, 0), n, g);
        }

        ggml_tensor * prefix = ggml_cont(ctx, ggml_view_2d(ctx, vote, n - w, g, vote->nb[1], 0));
        votes.pooled.push_back(output(gf, mean_of_rows(ctx, score(ctx, prefix, params))));
        votes.mass.push_back(output(gf, mean_of_rows(ctx, sum)));
    }
    if (obs.n_parts > 1) {
        for (auto * of_parts : { &votes.pooled, &votes.mass }) {
            ggml_tensor * sum = of_parts->front();
            for (size_t i = 1; i < of_parts->size(); ++i) {
                sum = ggml_add(ctx, sum, (*of_parts)[i]);
            }
            *of_parts = { output(gf, ggml_scale(ctx, sum, 1.0f / (float) obs.n_parts)) };
        }
    }
    return votes;
}

bool llama_snapkv_can_evict(const ggml_tensor * cache, int64_t n_head_kv) {
    return cache->nb[1] % (4 * n_head_kv) == 0;
}

// a cache tensor [n_embd_gqa, n_cells] as I32 [row bytes of a head/4, n_cells, n_head_kv], which get_rows copies as it is
// (of a quantized tensor get_rows would return f32)
static ggml_tensor * as_i32(ggml_context * ctx, ggml_tensor * t, int64_t n_head_kv) {
    const size_t row = t->nb[1];
    ggml_tensor * res = ggml_new_tensor_3d(ctx, GGML_TYPE_I32, row / 4 / n_head_kv, t->ne[1], n_head_kv);
    res->nb[1] = row;
    res->nb[2] = row / n_head_kv;
    res->nb[3] = row * t->ne[1];
    res->data = t->data;
    res->buffer = t->buffer;
    return res;
}

llama_snapkv_fused_votes llama_snapkv_graph_score_fused(ggml_context * ctx, const llama_snapkv_observation & obs, const llama_snapkv_params & params, uint32_t window, uint32_t n_kept) {
    llama_snapkv_fused_votes res;
    res.stats = snapkv_op_stats(ctx, obs.q, obs.k, obs.sinks, obs.scale, obs.softcap);
    res.parts = snapkv_op_votes(ctx, obs.q, obs.k, res.stats, obs.scale, obs.softcap, params.kernel_size, params.pooling, params.aggregation, params.self_weight);
    res.votes = res.parts;
    if (obs.n_parts > 1) {
        ggml_tensor * sum = ggml_sum_rows(ctx, ggml_cont(ctx, ggml_permute(ctx, res.parts, 1, 0, 2, 3))); // [1, n, 2]
        res.votes = ggml_scale(ctx, ggml_reshape_3d(ctx, sum, obs.k->ne[1], 1, 2), 1.0f / (float) obs.n_parts);
    }
    res.ids = snapkv_op_select(ctx, res.votes, (int32_t) window, n_kept, params.n_sink);
    return res;
}

bool llama_snapkv_supports(ggml_backend_dev_t dev, const llama_snapkv_fused_votes & votes) {
    // an RPC device says yes to every op, and its server would end at ours; of a backend in no line of the register its word counts
    const auto line = llama_snapkv_backend_of(dev);
    const bool may_know = line.fused || !line.name[0];
    return may_know && ggml_backend_dev_supports_op(dev, votes.stats) && ggml_backend_dev_supports_op(dev, votes.parts) && ggml_backend_dev_supports_op(dev, votes.ids);
}

void llama_snapkv_graph_evict(ggml_context * ctx, ggml_cgraph * gf, ggml_tensor * src, ggml_tensor * dst, ggml_tensor * ids,
        int64_t n_head_kv, int64_t cell0, int64_t n_kept, int64_t row0, int64_t w) {
    ggml_tensor * s = as_i32(ctx, src, n_head_kv);
    ggml_tensor * d = as_i32(ctx, dst, n_head_kv);

    if (n_kept > 0) {
        ggml_tensor * rows = ggml_get_rows(ctx, s, ids); // [.., n_kept, n_head_kv]
        ggml_tensor * to = ggml_view_3d(ctx, d, d->ne[0], n_kept, n_head_kv, d->nb[1], d->nb[2], cell0 * d->nb[1]);
        ggml_build_forward_expand(gf, ggml_cpy(ctx, rows, to));
    }
    if (w > 0) {
        ggml_tensor * from = ggml_view_3d(ctx, s, s->ne[0], w, n_head_kv, s->nb[1], s->nb[2], row0 * s->nb[1]);
        ggml_tensor * to = ggml_view_3d(ctx, d, d->ne[0], w, n_head_kv, d->nb[1], d->nb[2], (cell0 + n_kept) * d->nb[1]);
        ggml_build_forward_expand(gf, ggml_cpy(ctx, from, to));
    }
}
