#include "snapkv-prefill.h"

#include "snapkv-access.h"
#include "snapkv-graph.h"
#include "snapkv-runner.h"
#include "snapkv-select.h"
#include "snapkv-staging.h"

#include "llama-impl.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>

using access = llama_snapkv_access;

// time between two calls of the user's callback inside a graph
static constexpr int64_t CALLBACK_INTERVAL_US = 50 * 1000;

namespace {

struct aborted : std::exception {};
struct no_room : std::exception {};

// one prefill; its destructor leaves the context as an ordinary one, whatever happened
class prefill_run {
public:
    prefill_run(llama_context & ctx, llama_snapkv & sk, llama_seq_id seq_id, uint32_t n_tokens, llama_snapkv_progress_callback progress, void * user_data);
    ~prefill_run();

    void run(const llama_token * tokens);

private:
    // a layer of the current group, as its attention node shows it
    struct layer_view {
        uint32_t ic = 0; // cached layer
        int32_t il = 0; // layer of the model
        int64_t head_dim = 0;
        int64_t n_head = 0;
        int64_t n_head_kv = 0;
        float scale = 1.0f;
        float softcap = 0.0f;
        ggml_tensor * sinks = nullptr;
    };

    void prepare(const llama_token * tokens);
    void split_batch(const llama_token * tokens);
    void find_cells();
    void begin_group();
    void begin_chunk(uint32_t i);
    void compute_chunk(uint32_t ig, uint32_t i);
    void score_group();
    void evict_group();
    void take_logits();
    void place_cells();

    ggml_cgraph * build_chunk(ggml_context * gctx, uint32_t ig, uint32_t i);
    void save_queries(ggml_context * gctx, ggml_cgraph * gf, const layer_view & layer, ggml_tensor * attn, uint32_t i) const;
    ggml_tensor * queries(ggml_context * gctx, const layer_view & layer, int64_t row0, int64_t n_rows) const;
    std::vector<int32_t> select(const layer_view & layer, const llama_snapkv_votes & votes);
    void tap(const layer_view & layer, ggml_tensor * k) const;

    void compute(ggml_cgraph * gf, bool batched);

    llama_kv_cache_context & base_mctx();
    static bool on_abort_poll(void * data);
    bool report();

    bool is_last(uint32_t i) const { return i + 1 == ubatches.size(); }

    llama_context & ctx;
    llama_snapkv & sk;
    const llama_seq_id seq_id;
    const uint32_t n;       // prompt tokens
    const uint32_t w;       // window
    const uint32_t n_kept;  // prefix rows for each KV head
    const uint32_t chunk;
    const llama_snapkv_memory mem; // base: the compact cache

    llama_snapkv_groups groups;
    llama_snapkv_staging staging;
    llama_kv_cache * full = nullptr; // the staging cache

    llama_batch_allocr balloc;
    std::vector<llama_ubatch> ubatches;
    std::vector<uint32_t> starts; // first position of each ubatch

    llama_kv_cache::slot_info_vec_t sinfos_base;
    llama_kv_cache::slot_info_vec_t sinfos_swa;
    llama_kv_cache::slot_info target; // contiguous cells of the kept rows in the compact cache
    llama_memory_context_ptr mctx;

    llama_snapkv_runner runner;
    std::unique_ptr<llm_graph_result> res;

    std::vector<layer_view> layers; // of the current group
    std::shared_ptr<llama_snapkv_record> record;
    double coverage_sum = 0.0;

    llama_snapkv_progress_callback progress;
    void * user_data;
    uint64_t done = 0;
    int64_t t_last_report_us = 0;
    bool stop = false;

    ggml_abort_callback saved_abort;
    void * saved_abort_data;
    bool base_swapped = false;
    bool finished = false;
};

prefill_run::prefill_run(llama_context & ctx, llama_snapkv & sk, llama_seq_id seq_id, uint32_t n_tokens, llama_snapkv_progress_callback progress, void * user_data) :
    ctx(ctx), sk(sk), seq_id(seq_id), n(n_tokens), w(sk.params.window), n_kept(llama_snapkv_n_rows(sk.params, n_tokens) - sk.params.window),
    chunk(ctx.n_ubatch()), mem(llama_snapkv_memory_of(ctx)), balloc(ctx.get_model().hparams.n_pos_per_embd()), runner(ctx),
    progress(progress), user_data(user_data),
    saved_abort(access::abort_callback(ctx)), saved_abort_data(access::abort_callback_data(ctx)) {
}

prefill_run::~prefill_run() {
    mctx.reset();
    if (base_swapped) {
        std::swap(access::kv_base(*mem.iswa), staging.kv);
    }
    ctx.set_abort_callback(saved_abort, saved_abort_data);
    if (!finished) {
        access::n_outputs(ctx) = 0;
        ctx.get_memory()->seq_rm(seq_id, -1, -1);
    }
}

void prefill_run::prepare(const llama_token * tokens) {
    ctx.set_abort_callback(on_abort_poll, this);

    split_batch(tokens);

    const auto & hparams = ctx.get_model().hparams;
    int64_t n_heads = 0;
    for (const auto & layer : access::layers(*mem.base)) {
        groups.ils.push_back((int32_t) layer.il);
        n_heads += hparams.n_head_kv(layer.il);
    }
    groups.n_layer = (int32_t) hparams.n_layer();

    runner.begin(ctx.graph_max_nodes(chunk) + 32 * n_heads + 1024); // scoring takes about 20 for each KV head
    res.reset(new llm_graph_result(runner.get_max_nodes()));

    groups.size = llama_snapkv_choose_group(ctx, mem, sk.params, groups, n, chunk);
    staging = llama_snapkv_make_staging(ctx, mem, sk.params, groups, n, chunk);
    full = staging.kv.get();
    find_cells();

    record = std::make_shared<llama_snapkv_record>();
    record->n_prompt = n;
    record->window = w;

    if (mem.iswa) {
        std::swap(access::kv_base(*mem.iswa), staging.kv);
        base_swapped = true;
    }
}

void prefill_run::split_batch(const llama_token * tokens) {
    const auto & model = ctx.get_model();
    const auto & cp = ctx.get_cparams();

    llama_batch_ext batch(n, model.hparams.n_embd_inp(), model.hparams.n_embd_inp_enc(), cp.kv_unified ? LLAMA_MAX_SEQ : (llama_seq_id) cp.n_seq_max,
            nullptr, model.vocab.n_tokens(), model.hparams.n_pos_per_embd());
    batch.tokens.resize(n);
    for (uint32_t i = 0; i < n; ++i) {
        auto & t = batch.tokens[i];
        t.id = tokens[i];
        t.output = i + 1 == n;
        t.seq_ids = { seq_id };
        t.pos = { (llama_pos) i, 0, 0, 0 };
    }
    if (!balloc.init(batch, model.vocab, false)) {
        throw std::invalid_argument("a token id is outside of the vocabulary, or the sequence id is not below n_seq_max");
    }

    balloc.split_reset();
    uint32_t p = 0;
    while (p < n) {
        // as llama_kv_cache::init_batch() chooses
        ubatches.push_back(mem.base->get_n_stream() == 1 ? balloc.split_simple(chunk) : balloc.split_equal(chunk, true, 0));
        GGML_ASSERT(ubatches.back().n_tokens > 0);
        starts.push_back(p);
        p += ubatches.back().n_tokens;
    }
}

void prefill_run::find_cells() {
    // a prompt position is its own cell in the staging cache
    for (size_t i = 0; i < ubatches.size(); ++i) {
        llama_kv_cache::slot_info sinfo = { 0, 0, {}, {} };
        sinfo.resize(1);
        sinfo.strm[0] = 0;
        for (uint32_t j = 0; j < ubatches[i].n_tokens; ++j) {
            sinfo.idxs[0].push_back(starts[i] + j);
        }
        sinfos_base.push_back(std::move(sinfo));
    }

    // the same cells for every group, since all layers of the sliding-window cache share them
    if (mem.iswa) {
        sinfos_swa = mem.iswa->get_swa()->prepare(ubatches);
        if (sinfos_swa.empty()) {
            throw no_room();
        }
    }

    llama_batch_allocr allocr(ctx.get_model().hparams.n_pos_per_embd());
    llama_ubatch rows = allocr.ubatch_reserve(n_kept + w, 1);
    rows.seq_id_unq[0] = seq_id;
    for (uint32_t i = 0; i < rows.n_tokens; ++i) {
        rows.n_seq_id[i] = 1;
        rows.seq_id[i] = rows.seq_id_unq;
    }
    target = mem.base->find_slot(rows, true);
    if (target.empty()) {
        throw no_room();
    }
}

void prefill_run::begin_group() {
    mctx.reset();
    layers.clear();
    if (mem.iswa) {
        mem.iswa->get_swa()->seq_rm(seq_id, -1, -1);
        mctx = std::make_unique<llama_kv_cache_iswa_context>(mem.iswa, sinfos_base, sinfos_swa, ubatches);
    } else {
        mctx = std::make_unique<llama_kv_cache_context>(full, sinfos_base, ubatches);
    }
}

llama_kv_cache_context & prefill_run::base_mctx() {
    if (mem.iswa) {
        return const_cast<llama_kv_cache_context &>(*static_cast<llama_kv_cache_iswa_context *>(mctx.get())->get_base());
    }
    return *static_cast<llama_kv_cache_context *>(mctx.get());
}

void prefill_run::begin_chunk(uint32_t i) {
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

// [head_dim, n_rows, n_head] rows of the group's saved queries
ggml_tensor * prefill_run::queries(ggml_context * gctx, const layer_view & layer, int64_t row0, int64_t n_rows) const {
    ggml_tensor * t = staging.queries;
    const size_t slot = layer.ic % groups.size;
    const size_t row = layer.head_dim * sizeof(float);
    return ggml_view_3d(gctx, t, layer.head_dim, n_rows, layer.n_head, row, w * row, slot * t->nb[1] + row0 * row);
}

// the window's queries of this chunk, for the scores
void prefill_run::save_queries(ggml_context * gctx, ggml_cgraph * gf, const layer_view & layer, ggml_tensor * attn, uint32_t i) const {
    const int64_t p0 = std::max<int64_t>(starts[i], n - w);
    const int64_t n_rows = (int64_t) starts[i] + ubatches[i].n_tokens - p0;
    if (n_rows <= 0) {
        return;
    }
    ggml_tensor * q = attn->src[0];
    ggml_tensor * from = ggml_view_3d(gctx, q, q->ne[0], n_rows, q->ne[2], q->nb[1], q->nb[2], (p0 - starts[i]) * q->nb[1]);
    ggml_build_forward_expand(gf, ggml_cpy(gctx, from, queries(gctx, layer, p0 - (n - w), n_rows)));
}

ggml_cgraph * prefill_run::build_chunk(ggml_context * gctx, uint32_t ig, uint32_t i) {
    layers.clear();
    res->reset();

    llama_snapkv_graph graph = llama_snapkv_graph_build(ctx.get_model(), access::graph_params(ctx, res.get(), ubatches[i], mctx.get()), groups.n_layer);

    llama_snapkv_cut_params cut;
    cut.il0 = groups.il0(ig);
    cut.il1 = groups.il1(ig);
    auto hidden = [&]() {
        return ggml_view_2d(gctx, staging.hidden, staging.hidden->ne[0], ubatches[i].n_tokens, staging.hidden->nb[1], starts[i] * staging.hidden->nb[1]);
    };
    const bool last_group = ig + 1 == groups.count();
    if (ig > 0) {
        cut.hidden_in = hidden();
    }
    if (!last_group) {
        cut.hidden_out = hidden();
    }
    cut.store_only = last_group && !is_last(i);

    // all cached layers of the model use one mask; ours is made once and not for each chunk and group
    std::vector<ggml_tensor *> attns(groups.ils.size());
    for (uint32_t ic = 0; ic < attns.size(); ++ic) {
        attns[ic] = llama_snapkv_graph_attn(*res, groups.ils[ic]);
        ggml_tensor *& mask = attns[ic]->src[3];
        cut.mask_input = mask;
        mask = staging.mask_view(gctx, ic, mask->ne[0], mask->ne[1], starts[i]);
    }

    ggml_cgraph * gf = ggml_new_graph_custom(gctx, runner.get_max_nodes(), false);
    llama_snapkv_graph_cut(gctx, gf, graph, cut);

    for (uint32_t ic = ig * groups.size; ic < std::min<uint32_t>((ig + 1) * groups.size, groups.ils.size()); ++ic) {
        const ggml_tensor * attn = attns[ic];
        layer_view layer;
        layer.ic = ic;
        layer.il = groups.ils[ic];
        layer.head_dim = attn->src[0]->ne[0];
        layer.n_head = attn->src[0]->ne[2];
        layer.n_head_kv = attn->src[1]->ne[2];
        layer.sinks = attn->src[4];
        memcpy(&layer.scale, (const float *) attn->op_params + 0, sizeof(float));
        memcpy(&layer.softcap, (const float *) attn->op_params + 2, sizeof(float));
        save_queries(gctx, gf, layer, attns[ic], i);
        layers.push_back(layer);
    }
    if (last_group && is_last(i)) {
        ggml_set_output(res->t_logits);
    }
    return gf;
}

void prefill_run::compute(ggml_cgraph * gf, bool batched) {
    const ggml_status status = runner.compute(gf, batched);
    if (stop || status == GGML_STATUS_ABORTED) {
        throw aborted();
    }
    if (status != GGML_STATUS_SUCCESS) {
        throw std::runtime_error(format("the backend failed to compute a graph of the prefill (status %d)", (int) status));
    }
}

void prefill_run::compute_chunk(uint32_t ig, uint32_t i) {
    ggml_cgraph * gf = nullptr;
    ggml_context_ptr gctx = runner.allocate([&](ggml_context * c) { return build_chunk(c, ig, i); }, gf);

    res->set_inputs(&ubatches[i]);
    compute(gf, ubatches[i].n_tokens > 1);
    if (is_last(i) && ig + 1 == groups.count()) {
        take_logits();
    }

    done += ubatches[i].n_tokens;
    if (!report()) {
        throw aborted();
    }
}

void prefill_run::score_group() {
    const int64_t t0 = ggml_time_us();

    std::vector<llama_snapkv_votes> votes;
    std::vector<ggml_tensor *> taps;
    auto build = [&](ggml_context * gctx) {
        votes.clear();
        taps.clear();
        ggml_cgraph * gf = ggml_new_graph_custom(gctx, runner.get_max_nodes(), false);
        ggml_tensor * mask = nullptr;
        for (const auto & layer : layers) {
            const auto & kv = access::layers(*full)[access::map_layer_ids(*full).at(layer.il)];
            llama_snapkv_observation obs;
            obs.q = queries(gctx, layer, 0, w);
            obs.k = ggml_view_3d(gctx, kv.k, layer.head_dim, n, layer.n_head_kv, kv.k->nb[1], ggml_row_size(kv.k->type, layer.head_dim), 0);
            obs.sinks = layer.sinks;
            obs.scale = layer.scale;
            obs.softcap = layer.softcap;
            if (!mask || mask->src[0]->view_src != staging.masks[layer.ic]) {
                mask = ggml_cont(gctx, staging.mask_view(gctx, layer.ic, n, w, n - w));
            }
            obs.mask = mask;
            votes.push_back(llama_snapkv_graph_score(gctx, gf, obs, sk.params));
            if (sk.tap) {
                ggml_tensor * k = ggml_cont(gctx, obs.k->type == GGML_TYPE_F32 ? obs.k : ggml_cast(gctx, obs.k, GGML_TYPE_F32));
                ggml_set_output(k);
                ggml_build_forward_expand(gf, k);
                taps.push_back(k);
            }
        }
        return gf;
    };
    ggml_cgraph * gf = nullptr;
    ggml_context_ptr gctx = runner.allocate(build, gf);
    compute(gf, true);

    for (size_t i = 0; i < layers.size(); ++i) {
        record->layers.push_back({ layers[i].il, (uint32_t) layers[i].n_head_kv, n_kept, select(layers[i], votes[i]) });
    }
    sk.stats.seconds_score += (ggml_time_us() - t0) * 1e-6;

    for (size_t i = 0; i < taps.size(); ++i) {
        tap(layers[i], taps[i]);
    }
}

std::vector<int32_t> prefill_run::select(const layer_view & layer, const llama_snapkv_votes & votes) {
    std::vector<int32_t> ids;
    std::vector<float> pooled(n - w);
    std::vector<float> mass(n);
    for (int64_t h = 0; h < layer.n_head_kv; ++h) {
        ggml_backend_tensor_get(votes.pooled[h], pooled.data(), 0, pooled.size() * sizeof(float));
        ggml_backend_tensor_get(votes.mass[h], mass.data(), 0, mass.size() * sizeof(float));

        const auto head = llama_snapkv_select(pooled, n_kept, sk.params.sinks);
        coverage_sum += llama_snapkv_coverage(mass, head, w) / layer.n_head_kv;
        ids.insert(ids.end(), head.begin(), head.end());
        if (sk.params.keep_scores) {
            sk.scores[layer.ic].push_back(pooled);
        }
    }
    return ids;
}

void prefill_run::tap(const layer_view & layer, ggml_tensor * k) const {
    std::vector<float> q_data(layer.head_dim * w * layer.n_head);
    std::vector<float> k_data(ggml_nelements(k));
    ggml_backend_tensor_get(staging.queries, q_data.data(), (layer.ic % groups.size) * staging.queries->nb[1], q_data.size() * sizeof(float));
    ggml_backend_tensor_get(k, k_data.data(), 0, k_data.size() * sizeof(float));
    const llama_snapkv_tap_data data = {
        layer.ic,
        q_data.data(),
        k_data.data(),
        (uint32_t) layer.head_dim,
        w,
        (uint32_t) layer.n_head,
        n,
        (uint32_t) layer.n_head_kv,
        layer.scale,
        layer.softcap,
    };
    sk.tap(&data, sk.tap_data);
}

void prefill_run::evict_group() {
    const int64_t t0 = ggml_time_us();

    std::vector<ggml_tensor *> inputs;
    auto build = [&](ggml_context * gctx) {
        inputs.clear();
        ggml_cgraph * gf = ggml_new_graph_custom(gctx, runner.get_max_nodes(), false);
        for (const auto & layer : layers) {
            const auto & from = access::layers(*full)[access::map_layer_ids(*full).at(layer.il)];
            const auto & to = access::layers(*mem.base)[access::map_layer_ids(*mem.base).at(layer.il)];
            ggml_tensor * ids = nullptr;
            if (n_kept > 0) {
                ids = ggml_new_tensor_2d(gctx, GGML_TYPE_I32, n_kept, layer.n_head_kv);
                ggml_set_input(ids);
            }
            inputs.push_back(ids);
            const uint32_t stream = target.strm[0];
            llama_snapkv_graph_evict(gctx, gf, from.k_stream[0], to.k_stream[stream], ids, layer.n_head_kv, target.head(), n_kept, n - w, w);
            llama_snapkv_graph_evict(gctx, gf, from.v_stream[0], to.v_stream[stream], ids, layer.n_head_kv, target.head(), n_kept, n - w, w);
        }
        return gf;
    };
    ggml_cgraph * gf = nullptr;
    ggml_context_ptr gctx = runner.allocate(build, gf);
    for (size_t i = 0; i < inputs.size(); ++i) {
        if (inputs[i]) {
            const auto & ids = record->layers[record->layers.size() - inputs.size() + i].ids;
            ggml_backend_tensor_set(inputs[i], ids.data(), 0, ids.size() * sizeof(int32_t));
        }
    }
    compute(gf, true);

    sk.stats.seconds_evict += (ggml_time_us() - t0) * 1e-6;
}

void prefill_run::take_logits() {
    if (access::output_reserve(ctx, 1) < 1) {
        throw std::runtime_error("out of memory: the logits");
    }
    ggml_backend_tensor_get(res->t_logits, access::logits(ctx).data, 0, ctx.get_model().vocab.n_tokens() * sizeof(float));
}

// the kept rows as cells of the compact cache: packed right before the window
void prefill_run::place_cells() {
    auto & cells = access::v_cells(*mem.base)[target.strm[0]];
    const uint32_t n_rows = n_kept + w;
    for (uint32_t i = 0; i < n_rows; ++i) {
        const uint32_t idx = target.idxs[0][i];
        cells.pos_set(idx, (llama_pos) (n - n_rows + i));
        cells.seq_add(idx, seq_id);
    }
    access::v_heads(*mem.base)[target.strm[0]] = target.idxs[0].back() + 1;
    mem.base->snapkv.set(seq_id, record);
}

bool prefill_run::report() {
    t_last_report_us = ggml_time_us();
    if (!stop && progress && !progress(done, (uint64_t) n * groups.count(), user_data)) {
        stop = true;
    }
    return !stop;
}

// from inside of a graph's computation
bool prefill_run::on_abort_poll(void * data) {
    auto & run = *static_cast<prefill_run *>(data);
    if (run.saved_abort && run.saved_abort(run.saved_abort_data)) {
        run.stop = true;
    }
    if (!run.stop && ggml_time_us() - run.t_last_report_us > CALLBACK_INTERVAL_US) {
        run.report();
    }
    return run.stop;
}

void prefill_run::run(const llama_token * tokens) {
    prepare(tokens);

    auto & stats = sk.stats;
    stats.layer_group = groups.size;
    stats.bytes_staging = staging.bytes_kv;
    stats.bytes_hidden = staging.bytes_hidden;
    stats.bytes_mask = staging.bytes_mask;
    sk.scores.assign(sk.params.keep_scores ? groups.ils.size() : 0, {});

    for (uint32_t ig = 0; ig < groups.count(); ++ig) {
        begin_group();
        for (uint32_t i = 0; i < ubatches.size(); ++i) {
            begin_chunk(i);
            compute_chunk(ig, i);
        }
        score_group();
        evict_group();
    }

    place_cells();
    stats.n_kept = n_kept + w;
    stats.bytes_compute = runner.get_bytes();
    stats.coverage = coverage_sum / groups.ils.size();

    access::output_swaps(ctx).clear();
    access::output_ids(ctx)[0] = 0;
    access::n_outputs(ctx) = 1;
    finished = true;
}

} // namespace

static int32_t run_prefill(
        llama_context & ctx, llama_snapkv & sk, llama_seq_id seq_id, const llama_token * tokens, uint32_t n_tokens,
        llama_snapkv_progress_callback progress, void * user_data) {
    try {
        prefill_run run(ctx, sk, seq_id, n_tokens, progress, user_data);
        run.run(tokens);
        return 0;
    } catch (const aborted &) {
        llama_snapkv_set_error("the prefill was aborted");
        return 2;
    } catch (const no_room &) {
        llama_snapkv_set_error(format("no free cells for the kept rows of sequence %d: remove other sequences first", seq_id));
        return 1;
    } catch (const std::invalid_argument & e) {
        llama_snapkv_set_error(e.what());
        return -1;
    } catch (const std::bad_alloc &) {
        llama_snapkv_set_error("out of memory on the host");
        return -2;
    } catch (const std::exception & e) {
        llama_snapkv_set_error(e.what());
        return -2;
    }
}

int32_t llama_snapkv_prefill_groups(
        llama_context & ctx, llama_snapkv & sk, llama_seq_id seq_id, const llama_token * tokens, uint32_t n_tokens,
        llama_snapkv_progress_callback progress, void * user_data) {
    const int32_t rc = run_prefill(ctx, sk, seq_id, tokens, n_tokens, progress, user_data);
    try {
        llama_snapkv_reserve(ctx); // where this fails, decode() would throw out of the C API
    } catch (const std::exception & e) {
        ctx.get_memory()->seq_rm(seq_id, -1, -1);
        llama_snapkv_set_error(format("out of memory after the prefill: %s", e.what()));
        return -2;
    }
    return rc;
}
