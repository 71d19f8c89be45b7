// Chunks of the prompt through a layer group: their graphs, and the device that computes them.
#include "prefill/run.h"

#include "state/logits.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <map>

using access = llama_snapkv_access;

// time between two calls of the user's callback inside a graph
static constexpr int64_t CALLBACK_INTERVAL_US = 50 * 1000;

void llama_snapkv_prefill_run::begin_group(uint32_t ig) {
    mctx.reset();
    layers.clear();
    if (mem.iswa) {
        access::v_cells(*mem.iswa->get_swa())[mem.iswa->get_swa()->get_stream(seq_id)] = *cells_swa;
        mctx = std::make_unique<llama_kv_cache_iswa_context>(mem.iswa, sinfos_base, sinfos_swa, ubatches);
    } else {
        mctx = std::make_unique<llama_kv_cache_context>(staging.full, sinfos_base, ubatches);
    }
    if (staging.hidden) {
        staging.hidden.begin(ig > 0, (uint32_t) ubatches.size());
    }
    if (weights) {
        weights->end();
        begin_chunk(0);
        llama_snapkv_gctx gctx = runner.make_context();
        weights->lend(build_chunk(gctx.get(), *flights[0].res, ig, 0));
    }
    if (ig == 1 && place.device) {
        inputs.upload(place.buft(0));
    }
}

llama_kv_cache_context & llama_snapkv_prefill_run::base_mctx() {
    if (mem.iswa) {
        return const_cast<llama_kv_cache_context &>(*static_cast<llama_kv_cache_iswa_context *>(mctx.get())->get_base());
    }
    return *static_cast<llama_kv_cache_context *>(mctx.get());
}

void llama_snapkv_prefill_run::begin_chunk(uint32_t i) {
    if (i > 0) {
        mctx->next();
    }
    // the staging cache's cells are not filled in: its mask is ours and its indices are given. so only the number of
    // cells in use is needed, as get_n_kv() would return it
    access::n_kv(base_mctx()) = (uint32_t) GGML_PAD(starts[i] + ubatches[i].n_tokens, LLAMA_SNAPKV_N_KV_PAD);
    if (mem.iswa) {
        auto * swa = const_cast<llama_kv_cache_context *>(static_cast<llama_kv_cache_iswa_context *>(mctx.get())->get_swa());
        swa->apply();
    }
    access::n_outputs(ctx) = is_last(i) ? 1 : 0;
}

// the window's queries of this chunk, for the scores
void llama_snapkv_prefill_run::save_queries(ggml_context * gctx, ggml_cgraph * gf, const llama_snapkv_layer & layer, ggml_tensor * attn, uint32_t i) const {
    const int64_t first = (int64_t) n - staging.n_queries;
    const int64_t p0 = std::max<int64_t>(starts[i], first);
    const int64_t n_rows = (int64_t) starts[i] + ubatches[i].n_tokens - p0;
    if (n_rows <= 0) {
        return;
    }
    ggml_tensor * q = attn->src[0];
    ggml_tensor * from = ggml_view_3d(gctx, q, q->ne[0], n_rows, q->ne[2], q->nb[1], q->nb[2], (p0 - starts[i]) * q->nb[1]);
    ggml_build_forward_expand(gf, ggml_cpy(gctx, from, compressor->queries(gctx, layer, p0 - first, n_rows)));
}

ggml_cgraph * llama_snapkv_prefill_run::build_chunk(ggml_context * gctx, llm_graph_result & res, uint32_t ig, uint32_t i) {
    layers.clear();
    res.reset();

    llama_snapkv_graph graph = llama_snapkv_graph_build(ctx.get_model(), access::graph_params(ctx, &res, ubatches[i], mctx.get()), groups.n_layer);

    llama_snapkv_cut_params cut;
    cut.il0 = groups.il0(ig);
    cut.il1 = groups.il1(ig);
    if (ig > 0) {
        cut.hidden_in = staging.hidden.view(gctx, i, starts[i] - n_past, ubatches[i].n_tokens);
    }
    if (!is_last_group(ig)) {
        cut.hidden_out = staging.hidden.view(gctx, i, starts[i] - n_past, ubatches[i].n_tokens);
    }
    cut.store_only = is_last_group(ig) && !is_last(i);

    // all cached layers of the model use one mask; ours is made once and not for each chunk and group
    std::vector<ggml_tensor *> attns(groups.ils.size());
    std::map<ggml_tensor *, ggml_tensor *> copies; // of the masks' views, one for all layers of a device
    for (uint32_t ic = 0; ic < attns.size(); ++ic) {
        attns[ic] = llama_snapkv_graph_attn(res, groups.ils[ic]);
        ggml_tensor *& mask = attns[ic]->src[3];
        cut.mask_input = mask;
        mask = staging.mask_view(gctx, ic, mask->ne[0], mask->ne[1], starts[i]);
        if (!place.reads_mask_stride) {
            ggml_tensor *& copy = copies[staging.masks[ic]];
            copy = copy ? copy : ggml_cont(gctx, mask);
            mask = copy;
        }
    }

    ggml_cgraph * gf = ggml_new_graph_custom(gctx, runner.get_max_nodes(), false);
    llama_snapkv_graph_cut(gctx, gf, graph, cut);

    for (uint32_t ic = ig * groups.size; ic < std::min<uint32_t>((ig + 1) * groups.size, groups.ils.size()); ++ic) {
        const ggml_tensor * attn = attns[ic];
        llama_snapkv_layer layer;
        layer.ic = ic;
        layer.il = groups.ils[ic];
        layer.head_dim = attn->src[0]->ne[0];
        layer.n_head = attn->src[0]->ne[2];
        layer.n_head_kv = attn->src[1]->ne[2];
        layer.sinks = attn->src[4];
        layer.slot = ic % groups.size;
        memcpy(&layer.scale, (const float *) attn->op_params + 0, sizeof(float));
        memcpy(&layer.softcap, (const float *) attn->op_params + 2, sizeof(float));
        save_queries(gctx, gf, layer, attns[ic], i);
        layers.push_back(layer);
    }
    if (is_last_group(ig) && is_last(i)) {
        ggml_set_output(res.t_logits);
    }
    if (weights) {
        weights->substitute(gf);
    }
    if (inputs.is_ready()) {
        inputs.use(i, gf);
    }
    return gf;
}

void llama_snapkv_prefill_run::compute_chunk(uint32_t ig, uint32_t i) {
    flight & f = flights[n_started % std::size(flights)];
    land(f);

    ggml_cgraph * gf = nullptr;
    f.gctx = runner.allocate([&](ggml_context * c) { return build_chunk(c, *f.res, ig, i); }, gf);
    if (!inputs.is_ready()) {
        f.res->set_inputs(&ubatches[i]);
        if (ig == 0 && place.device && groups.count() > 1) {
            inputs.take(i, gf, 64 * ((size_t) starts[i] + ubatches[i].n_tokens) + 4096 * (i + 1));
        }
    }

    ggml_backend_t backend = runner.backend_of(place.devs[groups.il1(ig) - 1]);
    if (staging.hidden) {
        staging.hidden.enter(i, backend);
    }
    const ggml_status status = runner.start(gf, ubatches[i].n_tokens > 1);
    if (status != GGML_STATUS_SUCCESS) {
        throw llama_snapkv_compute_error(status);
    }
    if (staging.hidden) {
        staging.hidden.leave(i, backend, !is_last_group(ig));
    }
    f.n_tokens = ubatches[i].n_tokens;
    f.landed.record(backend);
    n_started++;

    if (!f.landed.is_supported()) {
        land_all();
    }
    if (is_last(i) && is_last_group(ig)) {
        land_all();
        take_logits(f);
    }
}

// wait for the device
void llama_snapkv_prefill_run::land(flight & f) {
    if (f.n_tokens == 0) {
        return;
    }
    f.landed.synchronize();
    done += f.n_tokens;
    f.n_tokens = 0;
    if (!report()) {
        throw llama_snapkv_aborted();
    }
}

void llama_snapkv_prefill_run::land_all() {
    runner.finish();
    for (uint32_t k = 0; k < std::size(flights); ++k) {
        land(flights[(n_started + k) % std::size(flights)]); // the oldest first
    }
}

void llama_snapkv_prefill_run::take_logits(const flight & f) {
    ggml_backend_tensor_get(f.res->t_logits, llama_snapkv_reserve_logits(ctx), 0, ctx.get_model().vocab.n_tokens() * sizeof(float));
}

bool llama_snapkv_prefill_run::report() {
    t_last_report_us = ggml_time_us();
    if (!stop && prompt.progress && !prompt.progress(done, (uint64_t) (n - n_past) * groups.count(), prompt.user_data)) {
        stop = true;
    }
    return !stop;
}

// from inside of a graph's computation
bool llama_snapkv_prefill_run::on_abort_poll(void * data) {
    auto & run = *static_cast<llama_snapkv_prefill_run *>(data);
    if (run.saved_abort && run.saved_abort(run.saved_abort_data)) {
        run.stop = true;
    }
    if (!run.stop && ggml_time_us() - run.t_last_report_us > CALLBACK_INTERVAL_US) {
        run.report();
    }
    return run.stop;
}
