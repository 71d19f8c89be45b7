#include "evict/scorer.h"

#include "ops/snapkv-op.h"
#include "state/params.h"

#include "llama-impl.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

// the question's words, as far as they are in the window
llama_snapkv_voters llama_snapkv_voters::of(const llama_snapkv_params & params, const llama_snapkv_task & task) {
    const auto & question = task.prompt.question;
    const uint32_t n = (uint32_t) (question.end - question.begin);
    const uint32_t n_after = (uint32_t) (task.end() - question.end);
    if (n == 0 || n_after >= task.window) {
        return { llama_snapkv_n_voters(params), 0 };
    }
    return { std::min(n, task.window - n_after), n_after };
}

void llama_snapkv_ballot::read_votes(int64_t head, std::vector<float> & pooled, std::vector<float> & mass) const {
    if (fused) {
        ggml_backend_tensor_get(votes.votes, pooled.data(), head * votes.votes->nb[1], pooled.size() * sizeof(float));
        ggml_backend_tensor_get(votes.votes, mass.data(), head * votes.votes->nb[1] + votes.votes->nb[2], mass.size() * sizeof(float));
    } else {
        ggml_backend_tensor_get(stock.pooled[head], pooled.data(), 0, pooled.size() * sizeof(float));
        ggml_backend_tensor_get(stock.mass[head], mass.data(), 0, mass.size() * sizeof(float));
    }
}

std::vector<int32_t> llama_snapkv_ballot::read_chosen(int64_t head, uint32_t n_kept, float & coverage) const {
    std::vector<int32_t> rows(n_kept + 1); // the coverage is in the last one
    ggml_backend_tensor_get(votes.ids, rows.data(), head * votes.ids->nb[1], rows.size() * sizeof(int32_t));
    memcpy(&coverage, &rows[n_kept], sizeof(float));
    rows.pop_back();
    return rows;
}

llama_snapkv_scorer::llama_snapkv_scorer(llama_context & ctx, const llama_snapkv_params & params, llama_snapkv_runner & runner, const llama_snapkv_place & place,
        const llama_snapkv_staging & staging, const llama_snapkv_task & task) :
    voters(llama_snapkv_voters::of(params, task)), ctx(ctx), params(params), runner(runner), place(place), staging(staging), task(task) {
}

bool llama_snapkv_scorer::is_fused(const llama_snapkv_layer & layer) const {
    const auto known = fused.find(layer.ic);
    return known != fused.end() ? known->second : fused.emplace(layer.ic, can_fuse(layer)).first->second;
}

bool llama_snapkv_scorer::can_fuse(const llama_snapkv_layer & layer) const {
    if (params.ops == LLAMA_SNAPKV_OPS_GGML) {
        return false;
    }
    ggml_backend_dev_t dev = place.devs[layer.il];
    llama_snapkv_gctx gctx(32 * ggml_tensor_overhead());
    const llama_snapkv_observation obs = observe(gctx.get(), layer);
    const bool fits = snapkv_op_fits(layer.head_dim, voters.n, layer.n_head, obs.k->ne[2], obs.k->type, params.kernel_size) &&
            llama_snapkv_supports(dev, build_fused(gctx.get(), obs));
    if (!fits && params.ops == LLAMA_SNAPKV_OPS_FUSED) {
        throw std::invalid_argument(format("%s has no fused ops for layer %d (%d query heads of %d elements, %d KV heads in %s, %u voters, kernel_size %u): set ops to auto",
                ggml_backend_dev_name(dev), layer.il, (int) layer.n_head, (int) layer.head_dim, (int) layer.n_head_kv, ggml_type_name(obs.k->type), voters.n, params.kernel_size));
    }
    return fits;
}

llama_snapkv_fused_votes llama_snapkv_scorer::build_fused(ggml_context * gctx, const llama_snapkv_observation & obs) const {
    return llama_snapkv_graph_score_fused(gctx, obs, params, n_seen() - task.n_prefix(), task.n_prefix_kept_max());
}

llama_snapkv_observation llama_snapkv_scorer::observe(ggml_context * gctx, const llama_snapkv_layer & layer) const {
    llama_snapkv_observation obs;
    obs.q = staging.queries_of(gctx, layer, staging.n_queries - voters.n_after - voters.n, voters.n);
    obs.k = staging.keys_of(gctx, layer, n_seen());
    obs.n_parts = llama_snapkv_n_parts(layer.n_head, layer.n_head_kv);
    if (obs.n_parts > 1) {
        obs.k->ne[2] = obs.n_parts; // ggml's views do not repeat what they show
        obs.k->nb[2] = 0;
    }
    obs.sinks = layer.sinks;
    obs.scale = layer.scale;
    obs.softcap = layer.softcap;
    return obs;
}

llama_snapkv_ballot llama_snapkv_scorer::vote(ggml_context * gctx, ggml_cgraph * gf, const llama_snapkv_layer & layer, bool with_votes, ggml_tensor *& mask) const {
    llama_snapkv_ballot res;
    res.fused = is_fused(layer);
    llama_snapkv_observation obs = observe(gctx, layer);
    if (res.fused) {
        res.votes = build_fused(gctx, obs);
        // the scheduler knows no preference for these; K must not leave its device
        for (ggml_tensor * node : { res.votes.stats, res.votes.parts, res.votes.votes, res.votes.ids }) {
            ggml_backend_sched_set_tensor_backend(ctx.get_sched(), node, runner.backend_of(place.devs[layer.il]));
        }
        ggml_set_output(res.votes.ids);
        if (with_votes) {
            ggml_set_output(res.votes.votes);
        }
        ggml_build_forward_expand(gf, res.votes.ids);
        return res;
    }

    if (!mask || mask->src[0]->view_src != staging.masks[layer.ic]) {
        mask = ggml_cont(gctx, staging.mask_view(gctx, layer.ic, n_seen(), voters.n, n_seen() - voters.n));
    }
    obs.mask = mask;
    res.stock = llama_snapkv_graph_score(gctx, gf, obs, params);
    return res;
}

static ggml_tensor * in_f32(ggml_context * gctx, ggml_cgraph * gf, ggml_tensor * rows) {
    ggml_tensor * t = ggml_cont(gctx, rows->type == GGML_TYPE_F32 ? rows : ggml_cast(gctx, rows, GGML_TYPE_F32));
    ggml_set_output(t);
    ggml_build_forward_expand(gf, t);
    return t;
}

llama_snapkv_ballots llama_snapkv_scorer::score(const std::vector<llama_snapkv_layer> & layers, bool with_votes, bool with_kv) {
    llama_snapkv_ballots res;
    auto build = [&](ggml_context * gctx) {
        res.of_layers.clear();
        ggml_cgraph * gf = ggml_new_graph_custom(gctx, runner.get_max_nodes(), false);
        ggml_tensor * mask = nullptr;
        for (const auto & layer : layers) {
            res.of_layers.push_back(vote(gctx, gf, layer, with_votes, mask));
            if (with_kv) {
                res.of_layers.back().k = in_f32(gctx, gf, staging.keys_of(gctx, layer, task.n_rows()));
                res.of_layers.back().v = in_f32(gctx, gf, staging.values_of(gctx, layer, task.n_rows()));
            }
        }
        return gf;
    };
    res.gctx = runner.compute(build);
    return res;
}
