// Chunks of the prompt through a layer group: their graphs, and the device that computes them.
#include "prefill/run.h"

#include "graph/cut.h"
#include "state/logits.h"
#include "upstream/access.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

using access = llama_snapkv_access;

void llama_snapkv_prefill_run::begin_group(uint32_t ig) {
    layers.clear();
    stages = place.stages(groups, ig);
    batches.begin_group(*staging.kv);
    if (staging.hidden) {
        std::vector<int64_t> rows;
        for (const uint32_t row : batches.rows()) {
            rows.push_back(row - known->n());
        }
        staging.hidden.begin(ig > 0, std::move(rows));
    }
    for (auto & [_, lent] : weights) {
        lent.end();
    }
    if (!weights.empty()) {
        begin_chunk(0);
    }
    for (uint32_t s = 0; s < stages.size(); ++s) {
        const auto lent = weights.find(stages[s].dev);
        if (lent != weights.end() && !stages[s].is_empty()) {
            runner.use_lane(s);
            llama_snapkv_gctx gctx = runner.make_context();
            lent->second.lend(build_chunk(gctx.get(), flights.scratch(), stages, s, ig, ahead ? batches.count() - 1 : 0)); // the last one needs all
        }
    }
    runner.use_lane(0);
}

size_t llama_snapkv_prefill_run::max_input_bytes(uint32_t i) const {
    return 64 * (size_t) batches.end(i) + 4096 * ((size_t) i + 1) + ((size_t) 1 << 20); // and what all share
}

bool llama_snapkv_prefill_run::passes_on(size_t n_stages, uint32_t s, uint32_t ig, uint32_t i) const {
    return s + 1 < n_stages || (!is_last_group(ig) && !(ahead && !is_tail(i)));
}

void llama_snapkv_prefill_run::begin_chunk(uint32_t i) {
    batches.begin_chunk(i);
    access::n_outputs(ctx) = batches.is_last(i) ? 1 : 0;
}

// the window's queries of this chunk, for the scores; attn: of a layer that reads the layer's KV; head0: its first query head of a KV head's
void llama_snapkv_prefill_run::save_queries(ggml_context * gctx, ggml_cgraph * gf, const llama_snapkv_layer & layer, const ggml_tensor * attn, int64_t head0, uint32_t i) const {
    const int64_t first = (int64_t) task.n_rows() - staging.n_queries;
    const int64_t p0 = std::max<int64_t>(batches.row0(i), first);
    const int64_t n_rows = (int64_t) batches.row0(i) + batches.n_tokens(i) - p0;
    if (n_rows <= 0) {
        return;
    }
    ggml_tensor * q = attn->src[0];
    const int64_t n_heads = q->ne[2] / layer.n_head_kv;
    ggml_tensor * from = ggml_view_4d(gctx, q, q->ne[0], n_rows, n_heads, layer.n_head_kv, q->nb[1], q->nb[2], n_heads * q->nb[2], (p0 - batches.row0(i)) * q->nb[1]);
    ggml_build_forward_expand(gf, ggml_cpy(gctx, from, staging.queries_of_reader(gctx, layer, head0, n_heads, p0 - first, n_rows)));
}

ggml_cgraph * llama_snapkv_prefill_run::build_chunk(ggml_context * gctx, llm_graph_result & res, const std::vector<llama_snapkv_stage> & of_group, uint32_t s, uint32_t ig, uint32_t i) {
    layers.clear();
    res.reset();

    auto params = access::graph_params(ctx, &res, batches.ubatch(i), batches.memory());
    if (place.is_dealt()) {
        // llama.cpp binds some nodes to where their layer's weights are
        params.cb = [this, cb = params.cb](const llama_ubatch & ubatch, ggml_tensor * cur, const char * name, int il) {
            cb(ubatch, cur, name, il);
            if (il >= 0 && il < groups.n_layer && ggml_backend_sched_get_tensor_backend(ctx.get_sched(), cur)) {
                ggml_backend_sched_set_tensor_backend(ctx.get_sched(), cur, runner.backend_of(place.devs[il]));
            }
        };
    }
    llama_snapkv_graph graph = llama_snapkv_graph_build(ctx.get_model(), params, groups.n_layer);

    llama_snapkv_cut_params cut;
    cut.il0 = of_group[s].il0;
    cut.il1 = of_group[s].il1;
    if (cut.il0 > 0) {
        cut.hidden_in = staging.hidden.view(gctx, s, i, batches.row0(i) - known->n(), batches.n_tokens(i));
    }
    const bool passes = passes_on(of_group.size(), s, ig, i);
    if (passes) {
        cut.hidden_out = staging.hidden.view(gctx, s, i, batches.row0(i) - known->n(), batches.n_tokens(i));
    }
    cut.store_only = !passes && (ahead || !batches.is_last(i));
    cut.flat = ahead && !is_tail(i);

    // all cached layers of the model use one mask; ours is made once and not for each chunk and group
    std::vector<std::vector<ggml_tensor *>> attns(groups.ils.size()); // of all layers that read a cached layer's KV
    std::map<ggml_tensor *, ggml_tensor *> copies; // of the masks' views, one for all layers of a device
    for (uint32_t ic = 0; ic < attns.size(); ++ic) {
        for (const int32_t il : groups.readers[ic]) {
            attns[ic].push_back(llama_snapkv_graph_attn(res, il));
            ggml_tensor *& mask = attns[ic].back()->src[3];
            cut.mask_input = mask;
            if (cut.flat) {
                continue; // nothing attends
            }
            mask = staging.mask_view(gctx, ic, mask->ne[0], mask->ne[1], batches.row0(i));
            if (!place.reads_mask_stride) {
                ggml_tensor *& copy = copies[staging.masks[ic]];
                copy = copy ? copy : ggml_cont(gctx, mask);
                mask = copy;
            }
        }
    }

    struct reader {
        const ggml_tensor * attn;
        size_t layer; // index
        int64_t head0;
    };
    std::vector<reader> readers; // whose queries are still to be saved
    for (uint32_t ic = groups.ic0(ig); ic < groups.ic1(ig); ++ic) {
        const ggml_tensor * attn = attns[ic][0];
        llama_snapkv_layer layer;
        layer.ic = ic;
        layer.il = groups.ils[ic];
        layer.head_dim = attn->src[0]->ne[0];
        layer.head_dim_v = attn->src[2]->ne[0];
        layer.n_head_kv = attn->src[1]->ne[2];
        for (const ggml_tensor * attn_of_reader : attns[ic]) {
            if (cut.il0 <= layer.il && layer.il < cut.il1) { // else in another stage's graph
                readers.push_back({ attn_of_reader, layers.size(), layer.n_head / layer.n_head_kv });
            }
            layer.n_head += attn_of_reader->src[0]->ne[2];
        }
        layer.sinks = attn->src[4];
        layer.slot = ic % groups.size;
        memcpy(&layer.scale, (const float *) attn->op_params + 0, sizeof(float));
        memcpy(&layer.softcap, (const float *) attn->op_params + 2, sizeof(float));
        layers.push_back(layer);
    }

    ggml_cgraph * gf = ggml_new_graph_custom(gctx, runner.get_max_nodes(), false);
    auto save = [&](const reader & r) { save_queries(gctx, gf, layers[r.layer], r.attn, r.head0, i); };
    // behind their attention, and not at the end: a device that reorders nodes would take them from there to between two others that it
    // computes as one in the whole model's graph, and round otherwise
    cut.behind = [&](const ggml_tensor * node) {
        const auto it = std::find_if(readers.begin(), readers.end(), [&](const reader & r) { return r.attn == node; });
        if (it != readers.end()) {
            save(*it);
            readers.erase(it);
        }
    };
    llama_snapkv_graph_cut(gctx, gf, graph, cut);
    std::for_each(readers.begin(), readers.end(), save); // of a cut that only stores K and V
    if (is_last_group(ig) && batches.is_last(i) && !ahead) {
        ggml_set_output(res.t_logits);
    }
    const auto lent = weights.find(of_group[s].dev);
    if (lent != weights.end()) {
        lent->second.substitute(gf);
    }
    sets_inputs = !inputs.use(i, gf, of_group[s].dev);
    return gf;
}

void llama_snapkv_prefill_run::compute_chunk(uint32_t ig, uint32_t i) {
    for (uint32_t s = 0; s < stages.size(); ++s) {
        runner.use_lane(s);
        compute_stage(ig, i, s);
    }
    runner.use_lane(0);
}

void llama_snapkv_prefill_run::compute_stage(uint32_t ig, uint32_t i, uint32_t s) {
    ggml_backend_t backend = runner.backend_of(stages[s].dev);
    const bool is_last = s + 1 == stages.size();
    ggml_backend_t next = is_last ? nullptr : runner.backend_of(stages[s + 1].dev);
    if (stages[s].is_empty()) { // the hidden state only goes on
        staging.hidden.enter(s, i, backend);
        staging.hidden.leave(s, i, backend, next, true);
        return;
    }
    auto & f = flights.next(s);

    ggml_cgraph * gf = nullptr;
    const auto build = [&](ggml_context * c) { return build_chunk(c, *f.res, stages, s, ig, i); };
    const llama_snapkv_runner::builder build_largest = [&](ggml_context * c) {
        const uint32_t last = batches.last_full();
        const auto n_outputs = std::exchange(access::n_outputs(ctx), batches.is_last(last) ? 1 : 0);
        batches.show_cells_of(last);
        ggml_cgraph * res = build_chunk(c, flights.scratch(), stages, s, ig, last);
        batches.show_cells_of(i);
        access::n_outputs(ctx) = n_outputs;
        return res;
    };
    // buffers grow with the rows where a device has those of a quantized cache in f16, or copies the mask. not with sliding windows, whose
    // cells are those of the chunk that is computed now
    const bool has_v = !ctx.get_model().hparams.is_mla();
    const bool is_quantized = ggml_is_quantized(mem.base->type_k()) || (has_v && ggml_is_quantized(mem.base->type_v()));
    const bool grows = !mem.iswa && (is_quantized || !place.reads_mask_stride);
    f.gctx = runner.allocate(build, gf, grows ? build_largest : nullptr);
    if (sets_inputs) {
        f.res->set_inputs(&batches.ubatch(i));
        // where others go on in cells that all share, what a later group's graphs are given may differ
        const bool differ = others.wait() && (mem.recr || (mem.iswa && mem.base->get_n_stream() == 1));
        const bool is_reused = (place.device && !is_last_group(ig)) || !place.gpus.empty();
        if (ig == ig_inputs && is_reused && !differ && !inputs.has(i)) {
            inputs.take(i, gf, max_input_bytes(i));
        }
    }

    if (staging.hidden) {
        staging.hidden.enter(s, i, backend);
    }
    const ggml_status status = runner.start(gf, batches.n_tokens(i) > 1);
    if (status != GGML_STATUS_SUCCESS) {
        throw llama_snapkv_compute_error(status);
    }
    if (staging.hidden) {
        staging.hidden.leave(s, i, backend, next, passes_on(stages.size(), s, ig, i));
    }
    flights.start(s, f, is_last && !ahead ? batches.n_tokens(i) : 0, backend);
    if (is_last && batches.is_last(i) && is_last_group(ig) && !ahead) {
        flights.land_all();
        take_logits(*f.res);
    }
}

void llama_snapkv_prefill_run::take_logits(const llm_graph_result & res) {
    ggml_backend_tensor_get(res.t_logits, llama_snapkv_reserve_logits(ctx), 0, ctx.get_model().vocab.n_tokens() * sizeof(float));
}
