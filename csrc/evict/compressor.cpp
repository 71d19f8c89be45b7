#include "evict/compressor.h"

#include "evict/rank.h"
#include "evict/stock.h"
#include "graph/cut.h"
#include "ops/snapkv-op.h"
#include "state/params.h"
#include "upstream/access.h"

#include "llama-impl.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>

using access = llama_snapkv_access;

// the question's words, as far as they are in the window
static llama_snapkv_voters find_voters(const llama_snapkv & sk) {
    if (sk.n_question == 0 || sk.n_after_question >= sk.params.window) {
        return { llama_snapkv_n_voters(sk.params), 0 };
    }
    return { std::min(sk.n_question, sk.params.window - sk.n_after_question), sk.n_after_question };
}

llama_snapkv_compressor::llama_snapkv_compressor(llama_context & ctx, llama_snapkv & sk, llama_snapkv_runner & runner, const llama_snapkv_place & place,
        const llama_snapkv_staging & staging, uint32_t n_prompt, uint32_t n_kept, uint32_t n_least, llama_pos shift, llama_snapkv_record_ptr before) :
    ctx(ctx), sk(sk), runner(runner), place(place), staging(staging), n(n_prompt), w(sk.params.window),
    voters(find_voters(sk)), n_seen(n - voters.n_after), n_kept(n_kept), n_least(n_least), shift(shift), before(std::move(before)) {
}

static const auto & cache_layer(const llama_kv_cache & kv, int32_t il) {
    return llama_snapkv_access::layers(kv)[llama_snapkv_access::map_layer_ids(kv).at(il)];
}

ggml_tensor * llama_snapkv_compressor::queries(ggml_context * gctx, const llama_snapkv_layer & layer, int64_t row0, int64_t n_rows) const {
    ggml_tensor * t = staging.queries;
    const size_t row = layer.head_dim * sizeof(float);
    return ggml_view_3d(gctx, t, layer.head_dim, n_rows, layer.n_head, row, staging.n_queries * row, layer.slot * t->nb[1] + row0 * row);
}

ggml_tensor * llama_snapkv_compressor::keys(ggml_context * gctx, const llama_snapkv_layer & layer, int64_t n_rows) const {
    ggml_tensor * k = cache_layer(*staging.full, layer.il).k;
    return ggml_view_3d(gctx, k, layer.head_dim, n_rows, layer.n_head_kv, k->nb[1], ggml_row_size(k->type, layer.head_dim), 0);
}

ggml_tensor * llama_snapkv_compressor::values(ggml_context * gctx, const llama_snapkv_layer & layer) const {
    ggml_tensor * v = cache_layer(*staging.full, layer.il).v;
    const int64_t head_dim = v->ne[0] / layer.n_head_kv;
    return ggml_view_3d(gctx, v, head_dim, n, layer.n_head_kv, v->nb[1], ggml_row_size(v->type, head_dim), 0);
}

bool llama_snapkv_compressor::use_fused(const llama_snapkv_layer & layer) const {
    const auto known = fused.find(layer.ic);
    return known != fused.end() ? known->second : fused.emplace(layer.ic, can_fuse(layer)).first->second;
}

// can the fused ops run this layer on its device?
bool llama_snapkv_compressor::can_fuse(const llama_snapkv_layer & layer) const {
    if (sk.params.ops == LLAMA_SNAPKV_OPS_STOCK) {
        return false;
    }
    ggml_backend_dev_t dev = place.devs[layer.il];
    llama_snapkv_gctx gctx(32 * ggml_tensor_overhead());
    const llama_snapkv_observation obs = observe(gctx.get(), layer);
    const bool fits = snapkv_op_fits(layer.head_dim, voters.n, layer.n_head, layer.n_head_kv, obs.k->type, sk.params.kernel) &&
            llama_snapkv_supports(dev, llama_snapkv_graph_score_fused(gctx.get(), obs, sk.params, n_seen - (n - w), n_kept));
    if (!fits && sk.params.ops == LLAMA_SNAPKV_OPS_FUSED) {
        throw std::invalid_argument(format("%s has no fused ops for layer %d (%d query heads of %d elements, %d KV heads in %s, %u voters, kernel %u): set ops to auto",
                ggml_backend_dev_name(dev), layer.il, (int) layer.n_head, (int) layer.head_dim, (int) layer.n_head_kv, ggml_type_name(obs.k->type), voters.n, sk.params.kernel));
    }
    return fits;
}

llama_snapkv_observation llama_snapkv_compressor::observe(ggml_context * gctx, const llama_snapkv_layer & layer) const {
    llama_snapkv_observation obs;
    obs.q = queries(gctx, layer, staging.n_queries - voters.n_after - voters.n, voters.n);
    obs.k = keys(gctx, layer, n_seen);
    obs.sinks = layer.sinks;
    obs.scale = layer.scale;
    obs.softcap = layer.softcap;
    return obs;
}

llama_snapkv_compressor::ballot llama_snapkv_compressor::vote(ggml_context * gctx, ggml_cgraph * gf, const llama_snapkv_layer & layer, ggml_tensor *& mask) const {
    ballot res;
    res.fused = use_fused(layer);
    llama_snapkv_observation obs = observe(gctx, layer);
    if (res.fused) {
        res.votes = llama_snapkv_graph_score_fused(gctx, obs, sk.params, n_seen - (n - w), n_kept);
        // the scheduler knows no preference for these; K must not leave its device
        for (ggml_tensor * node : { res.votes.stats, res.votes.votes, res.votes.ids }) {
            ggml_backend_sched_set_tensor_backend(ctx.get_sched(), node, runner.backend_of(place.devs[layer.il]));
        }
        ggml_set_output(res.votes.ids);
        if (sk.params.keep_scores || ranks()) {
            ggml_set_output(res.votes.votes);
        }
        ggml_build_forward_expand(gf, res.votes.ids);
        return res;
    }

    if (!mask || mask->src[0]->view_src != staging.masks[layer.ic]) {
        mask = ggml_cont(gctx, staging.mask_view(gctx, layer.ic, n_seen, voters.n, n_seen - voters.n));
    }
    obs.mask = mask;
    res.stock = llama_snapkv_graph_score(gctx, gf, obs, sk.params);
    return res;
}

ggml_tensor * llama_snapkv_compressor::in_f32(ggml_context * gctx, ggml_cgraph * gf, ggml_tensor * rows) const {
    ggml_tensor * t = ggml_cont(gctx, rows->type == GGML_TYPE_F32 ? rows : ggml_cast(gctx, rows, GGML_TYPE_F32));
    ggml_set_output(t);
    ggml_build_forward_expand(gf, t);
    return t;
}

double llama_snapkv_compressor::get_coverage() const {
    double sum = 0.0;
    for (const auto & layer : sk.coverage) {
        sum += std::accumulate(layer.begin(), layer.end(), 0.0) / layer.size();
    }
    return sum / sk.coverage.size();
}

static void compute(llama_snapkv_runner & runner, ggml_cgraph * gf) {
    const ggml_status status = runner.start(gf, true);
    runner.finish();
    if (status != GGML_STATUS_SUCCESS) {
        throw llama_snapkv_compute_error(status);
    }
}

void llama_snapkv_compressor::score(const std::vector<llama_snapkv_layer> & layers, llama_snapkv_record & record) {
    const int64_t t0 = ggml_time_us();

    std::vector<ballot> ballots;
    std::vector<std::pair<ggml_tensor *, ggml_tensor *>> taps; // K and V
    auto build = [&](ggml_context * gctx) {
        ballots.clear();
        taps.clear();
        ggml_cgraph * gf = ggml_new_graph_custom(gctx, runner.get_max_nodes(), false);
        ggml_tensor * mask = nullptr;
        for (const auto & layer : layers) {
            ballots.push_back(vote(gctx, gf, layer, mask));
            if (sk.tap) {
                ggml_tensor * k = in_f32(gctx, gf, keys(gctx, layer, n));
                taps.emplace_back(k, in_f32(gctx, gf, values(gctx, layer)));
            }
        }
        return gf;
    };
    ggml_cgraph * gf = nullptr;
    llama_snapkv_gctx gctx = runner.allocate(build, gf);
    compute(runner, gf);

    for (size_t i = 0; i < layers.size(); ++i) {
        n_scored++;
        n_fused += ballots[i].fused;
        record.layers.push_back({ layers[i].il, (uint32_t) layers[i].n_head_kv, n_kept, count(layers[i], ballots[i]) });
    }
    sk.stats.seconds_score += (ggml_time_us() - t0) * 1e-6;
    sk.stats.n_voters = voters.n;
    sk.stats.n_after_voters = voters.n_after;

    for (size_t i = 0; i < taps.size(); ++i) {
        tap(layers[i], taps[i].first, taps[i].second, record.layers[record.layers.size() - taps.size() + i]);
    }
}

llama_snapkv_compressor::ranking llama_snapkv_compressor::rank(const llama_snapkv_layer & layer, int64_t head, const std::vector<float> & pooled, const std::vector<float> & mass) const {
    const uint32_t n_old = before ? before->layers[layer.ic].n_kept : 0;
    std::vector<bool> stays(n - w);
    uint32_t n_stay = 0;
    for (uint32_t row = 0; row < stays.size(); ++row) {
        const llama_pos pos = row < n_old ? before->layers[layer.ic].ids[head * n_old + row] : (llama_pos) row + shift;
        stays[row] = row < sk.params.sinks || std::any_of(sk.protected_spans.begin(), sk.protected_spans.end(), [&](const auto & span) { return span.first <= pos && pos < span.second; });
        n_stay += stays[row];
    }
    if (n_stay > n_least) {
        throw std::invalid_argument(format("%u protected positions and the window's %u are more than the budget of %u: raise the budget or protect less", n_stay, w, n_least + w));
    }

    ranking res;
    res.order = llama_snapkv_rank(pooled, n_kept, stays);
    const double total = std::accumulate(mass.begin(), mass.end(), 0.0);
    double held = std::accumulate(mass.begin() + (n - w), mass.end(), 0.0);
    for (uint32_t i = 0; i <= n_kept; ++i) {
        held += i > 0 ? mass[res.order[i - 1]] : 0.0f;
        res.held.push_back(total > 0.0 ? (float) std::min(1.0, held / total) : 1.0f);
    }
    return res;
}

std::vector<int32_t> llama_snapkv_compressor::count(const llama_snapkv_layer & layer, const ballot & ballot) {
    std::vector<int32_t> ids;
    auto & coverage = sk.coverage[layer.ic];
    std::vector<float> pooled(n - w);
    std::vector<float> mass(n_seen);
    rankings.resize(sk.coverage.size());
    for (int64_t h = 0; h < layer.n_head_kv; ++h) {
        const auto & v = ballot.votes;
        if (!ballot.fused) {
            ggml_backend_tensor_get(ballot.stock.pooled[h], pooled.data(), 0, pooled.size() * sizeof(float));
            ggml_backend_tensor_get(ballot.stock.mass[h], mass.data(), 0, mass.size() * sizeof(float));
        } else if (sk.params.keep_scores || ranks()) {
            ggml_backend_tensor_get(v.votes, pooled.data(), h * v.votes->nb[1], pooled.size() * sizeof(float));
            ggml_backend_tensor_get(v.votes, mass.data(), h * v.votes->nb[1] + v.votes->nb[2], mass.size() * sizeof(float));
        }
        if (sk.params.keep_scores) {
            sk.scores[layer.ic].push_back(pooled);
        }

        std::vector<int32_t> head;
        if (ranks()) {
            rankings[layer.ic].push_back(rank(layer, h, pooled, mass));
            head = rankings[layer.ic].back().order;
            std::sort(head.begin(), head.end());
            coverage.push_back(rankings[layer.ic].back().held.back());
        } else if (ballot.fused) {
            head.resize(n_kept + 1);
            ggml_backend_tensor_get(v.ids, head.data(), h * v.ids->nb[1], head.size() * sizeof(int32_t));
            coverage.emplace_back();
            memcpy(&coverage.back(), &head[n_kept], sizeof(float));
            head.pop_back();
        } else {
            head = llama_snapkv_select(pooled, n_kept, sk.params.sinks);
            coverage.push_back((float) llama_snapkv_coverage_of(mass, head, n_seen - (n - w)));
        }
        ids.insert(ids.end(), head.begin(), head.end());
    }
    return ids;
}

uint32_t llama_snapkv_compressor::rows_for_coverage() const {
    auto coverage = [&](uint32_t n_rows) {
        double sum = 0.0;
        for (const auto & layer : rankings) {
            double of_layer = 0.0;
            for (const auto & head : layer) {
                of_layer += head.held[n_rows];
            }
            sum += of_layer / layer.size();
        }
        return sum / rankings.size();
    };
    uint32_t low = n_least;
    uint32_t high = n_kept;
    while (low < high) {
        const uint32_t middle = (low + high) / 2;
        if (coverage(middle) >= sk.params.min_coverage) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

void llama_snapkv_compressor::shrink(uint32_t n_rows, llama_snapkv_record & record, llama_kv_cache & base, const llama_kv_cache::slot_info & target) {
    const int64_t t0 = ggml_time_us();
    for (uint32_t ic = 0; ic < record.layers.size(); ++ic) {
        auto & layer = record.layers[ic];
        std::vector<int32_t> ids;
        std::vector<uint32_t> rows; // of the old ones, [n_rows, n_head_kv]
        for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
            auto best = rankings[ic][h].order;
            best.resize(n_rows);
            std::sort(best.begin(), best.end());
            const auto first = layer.ids.begin() + (size_t) h * n_kept;
            for (const int32_t id : best) {
                rows.push_back((uint32_t) (std::lower_bound(first, first + n_kept, id) - first));
            }
            ids.insert(ids.end(), best.begin(), best.end());
            sk.coverage[ic][h] = rankings[ic][h].held[n_rows];
        }
        const auto & cached = cache_layer(base, layer.il);
        for (const bool is_v : { false, true }) {
            ggml_tensor * t = (is_v ? cached.v_stream : cached.k_stream)[target.strm[0]];
            const size_t row = t->nb[1];
            const size_t head = row / layer.n_head_kv;
            std::vector<uint8_t> from((n_kept + w) * row);
            std::vector<uint8_t> to((n_rows + w) * row);
            ggml_backend_tensor_get(t, from.data(), target.head() * row, from.size());
            for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
                for (uint32_t i = 0; i < n_rows; ++i) {
                    memcpy(&to[i * row + h * head], &from[rows[h * n_rows + i] * row + h * head], head);
                }
            }
            memcpy(&to[n_rows * row], &from[n_kept * row], w * row);
            ggml_backend_tensor_set(t, to.data(), target.head() * row, to.size());
        }
        layer.ids = std::move(ids);
        layer.n_kept = n_rows;
    }
    sk.stats.seconds_evict += (ggml_time_us() - t0) * 1e-6;
}

void llama_snapkv_compressor::tap(const llama_snapkv_layer & layer, ggml_tensor * k, ggml_tensor * v, llama_snapkv_record::layer & kept) const {
    std::vector<float> q_data(layer.head_dim * staging.n_queries * layer.n_head);
    std::vector<float> k_data(ggml_nelements(k));
    std::vector<float> v_data(ggml_nelements(v));
    ggml_backend_tensor_get(staging.queries, q_data.data(), layer.slot * staging.queries->nb[1], q_data.size() * sizeof(float));
    ggml_backend_tensor_get(k, k_data.data(), 0, k_data.size() * sizeof(float));
    ggml_backend_tensor_get(v, v_data.data(), 0, v_data.size() * sizeof(float));
    const llama_snapkv_tap_data data = {
        layer.ic,
        q_data.data(),
        k_data.data(),
        v_data.data(),
        (uint32_t) layer.head_dim,
        (uint32_t) v->ne[0],
        staging.n_queries,
        (uint32_t) layer.n_head,
        n,
        (uint32_t) layer.n_head_kv,
        n_kept,
        layer.scale,
        layer.softcap,
        kept.ids.data(),
        sk.coverage[layer.ic].data(),
    };
    sk.tap(&data, sk.tap_data);
    const std::string error = llama_snapkv_check_ids(kept.ids.data(), n_kept, (uint32_t) layer.n_head_kv, n - w);
    if (!error.empty()) {
        throw std::invalid_argument(format("layer %d: the positions chosen %s", layer.il, error.c_str()));
    }
}

// src: the full cache, dst: the compact one, both [n_embd_gqa, n_cells]
void llama_snapkv_compressor::copy_rows(
        ggml_context * gctx, ggml_cgraph * gf, const llama_snapkv_layer & layer, ggml_tensor * src, ggml_tensor * dst, ggml_tensor * ids, int64_t cell0) const {
    if (!use_fused(layer)) {
        llama_snapkv_graph_evict(gctx, gf, src, dst, ids, layer.n_head_kv, cell0, n_kept, n - w, w);
        return;
    }
    ggml_backend_t backend = runner.backend_of(place.devs[layer.il]);
    ggml_tensor * to = ggml_view_2d(gctx, dst, dst->ne[0], n_kept + w, dst->nb[1], cell0 * dst->nb[1]);
    // a layer that is computed elsewhere than it is kept: pack the rows there, then move them
    const bool moves = !ggml_backend_supports_buft(backend, ggml_backend_buffer_get_type(dst->buffer));
    ggml_tensor * packed = moves ? ggml_new_tensor_2d(gctx, dst->type, dst->ne[0], n_kept + w) : to;
    packed = snapkv_op_evict(gctx, packed, src, ids, layer.n_head_kv, n - w);
    ggml_backend_sched_set_tensor_backend(ctx.get_sched(), packed, backend);
    ggml_build_forward_expand(gf, moves ? ggml_cpy(gctx, packed, to) : packed);
}

void llama_snapkv_compressor::evict(const std::vector<llama_snapkv_layer> & layers, const llama_snapkv_record & record, llama_kv_cache & base, const llama_kv_cache::slot_info & target) {
    const int64_t t0 = ggml_time_us();

    std::vector<ggml_tensor *> inputs;
    auto build = [&](ggml_context * gctx) {
        inputs.clear();
        ggml_cgraph * gf = ggml_new_graph_custom(gctx, runner.get_max_nodes(), false);
        for (const auto & layer : layers) {
            const auto & from = cache_layer(*staging.full, layer.il);
            const auto & to = cache_layer(base, layer.il);
            ggml_tensor * ids = nullptr;
            if (use_fused(layer) || n_kept > 0) { // the fused op has a row for the coverage, too
                ids = ggml_new_tensor_2d(gctx, GGML_TYPE_I32, n_kept + use_fused(layer), layer.n_head_kv);
                ggml_set_input(ids);
            }
            inputs.push_back(ids);
            const uint32_t stream = target.strm[0];
            copy_rows(gctx, gf, layer, from.k_stream[0], to.k_stream[stream], ids, target.head());
            copy_rows(gctx, gf, layer, from.v_stream[0], to.v_stream[stream], ids, target.head());
        }
        return gf;
    };
    ggml_cgraph * gf = nullptr;
    llama_snapkv_gctx gctx = runner.allocate(build, gf);
    for (size_t i = 0; i < inputs.size(); ++i) {
        const auto & ids = record.layers[record.layers.size() - inputs.size() + i].ids;
        for (int64_t h = 0; n_kept > 0 && h < layers[i].n_head_kv; ++h) {
            ggml_backend_tensor_set(inputs[i], ids.data() + h * n_kept, h * inputs[i]->nb[1], n_kept * sizeof(int32_t));
        }
    }
    compute(runner, gf);
    sk.stats.seconds_evict += (ggml_time_us() - t0) * 1e-6;
}
