#include "snapkv-prefill.h"

#include "snapkv-access.h"
#include "snapkv-compress.h"
#include "snapkv-graph.h"
#include "snapkv-inputs.h"
#include "snapkv-place.h"
#include "snapkv-runner.h"
#include "snapkv-staging.h"
#include "snapkv-tail.h"
#include "snapkv-weights.h"

#include "llama-impl.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <new>
#include <stdexcept>

using access = llama_snapkv_access;

// tokens that are computed after the vault's, at least: with fewer queries attention takes another way on most devices, whose
// rounding would choose other rows than a prefill of the whole prompt
static constexpr uint32_t MIN_NEW = 64;

// time between two calls of the user's callback inside a graph
static constexpr int64_t CALLBACK_INTERVAL_US = 50 * 1000;

namespace {

struct aborted : std::exception {};
struct no_room : std::exception {};

// one prefill; its destructor leaves the context as an ordinary one, whatever happened
class prefill_run {
public:
    prefill_run(llama_context & ctx, llama_snapkv & sk, const llama_snapkv_prompt & prompt);
    ~prefill_run();

    void run();

private:
    // the graph of a chunk, from its start until the device has ended it
    struct flight {
        llama_snapkv_gctx gctx;
        std::unique_ptr<llm_graph_result> res;
        llama_snapkv_event landed;
        uint32_t n_tokens = 0; // 0: not in flight
    };

    void prepare();
    void split_batch();
    void find_cells();
    void allocate(const llama_snapkv_plan & plan);
    void drop();
    void open_vault();
    uint32_t n_new_min() const;
    uint32_t n_tail() const;
    void load_rows(uint32_t ig);
    void save_rows();
    void rows_to_positions();
    void begin_group(uint32_t ig);
    void begin_chunk(uint32_t i);
    void compute_chunk(uint32_t ig, uint32_t i);
    void land(flight & f);
    void land_all();
    void take_logits(const flight & f);

    ggml_cgraph * build_chunk(ggml_context * gctx, llm_graph_result & res, uint32_t ig, uint32_t i);
    void save_queries(ggml_context * gctx, ggml_cgraph * gf, const llama_snapkv_layer & layer, ggml_tensor * attn, uint32_t i) const;

    llama_kv_cache_context & base_mctx();
    static bool on_abort_poll(void * data);
    bool report();

    bool is_last(uint32_t i) const { return i + 1 == ubatches.size(); }
    bool is_last_group(uint32_t ig) const { return ig + 1 == groups.count(); }

    llama_context & ctx;
    llama_snapkv & sk;
    const llama_snapkv_prompt & prompt;
    const llama_seq_id seq_id;
    const uint32_t n;       // rows: cells that go before the tokens, and tokens
    const llama_pos shift;  // position of a computed token - its row
    const uint32_t w;       // window
    uint32_t n_kept;        // prefix rows for each KV head
    const llama_snapkv_memory mem; // base: the compact cache
    uint32_t n_past;        // first rows, whose K and V come from cells or from the vault

    llama_snapkv_groups groups;
    llama_snapkv_place place;
    llama_snapkv_plan plan;
    llama_snapkv_runner runner;
    llama_snapkv_staging staging;
    llama_snapkv_inputs inputs;
    std::unique_ptr<llama_snapkv_lent_weights> weights; // null: all weights are where their layers are computed
    std::unique_ptr<llama_snapkv_compressor> compressor;

    llama_snapkv_vault * vault = nullptr; // null: none is wanted
    llama_snapkv_vault::segment added;    // what this prefill adds to it

    llama_batch_allocr balloc;
    std::vector<llama_ubatch> ubatches;
    std::vector<uint32_t> starts; // first position of each ubatch

    llama_kv_cache::slot_info_vec_t sinfos_base;
    llama_kv_cache::slot_info_vec_t sinfos_swa;
    std::unique_ptr<llama_kv_cells> cells_swa; // before the tokens, for each group
    llama_kv_cache::slot_info target; // contiguous cells of the kept rows in the compact cache
    llama_memory_context_ptr mctx;

    // so many, that the device always has a graph to go on with
    flight flights[3];
    uint32_t n_started = 0;

    std::vector<llama_snapkv_layer> layers; // of the current group
    std::shared_ptr<llama_snapkv_record> record;
    const llama_snapkv_record_ptr before; // of the cells that go before, null if each one's position is its token's

    uint64_t done = 0;
    int64_t t_last_report_us = 0;
    bool stop = false;

    ggml_abort_callback saved_abort;
    void * saved_abort_data;
    bool base_swapped = false;
    bool finished = false;
};

prefill_run::prefill_run(llama_context & ctx, llama_snapkv & sk, const llama_snapkv_prompt & prompt) :
    ctx(ctx), sk(sk), prompt(prompt), seq_id(prompt.seq_id), n(prompt.n_cells + prompt.n_tokens), shift(prompt.pos0 - (llama_pos) prompt.n_cells), w(sk.params.window),
    n_kept(prompt.n_rows_max - sk.params.window), mem(llama_snapkv_memory_of(ctx)), n_past(prompt.n_cells), runner(ctx), balloc(ctx.get_model().hparams.n_pos_per_embd()),
    before(mem.base->snapkv.get(seq_id)),
    saved_abort(access::abort_callback(ctx)), saved_abort_data(access::abort_callback_data(ctx)) {
}

prefill_run::~prefill_run() {
    drop();
    ctx.set_abort_callback(saved_abort, saved_abort_data);
    if (!finished) {
        access::n_outputs(ctx) = 0;
        ctx.get_memory()->seq_rm(seq_id, -1, -1);
    }
}

// what a plan has allocated
void prefill_run::drop() {
    runner.finish();
    staging.hidden.finish();
    mctx.reset();
    if (base_swapped) {
        std::swap(access::kv_base(*mem.iswa), staging.kv);
        base_swapped = false;
    }
    compressor.reset();
    staging = {};
}

void prefill_run::prepare() {
    ctx.set_abort_callback(on_abort_poll, this);

    if (mem.iswa && sk.params.chunk > ctx.n_ubatch()) {
        throw std::invalid_argument(format("chunk %u is more than n_ubatch %u, for which the cache of the sliding-window layers has cells: make n_ubatch larger or the chunk smaller", sk.params.chunk, ctx.n_ubatch()));
    }

    const auto & hparams = ctx.get_model().hparams;
    int64_t n_heads = 0;
    for (const auto & layer : access::layers(*mem.base)) {
        groups.ils.push_back((int32_t) layer.il);
        n_heads += hparams.n_head_kv(layer.il);
    }
    groups.n_layer = (int32_t) hparams.n_layer();
    groups.size = 1;
    place = llama_snapkv_make_place(ctx, mem, groups);
    if (sk.params.vault && prompt.n_cells == 0) {
        open_vault();
    }
    if (place.lends) {
        weights = std::make_unique<llama_snapkv_lent_weights>(place.device);
    }

    runner.begin(ctx.graph_max_nodes(std::max(sk.params.chunk, ctx.n_ubatch())) + 32 * n_heads + 1024); // stock ops take about 20 for each KV head
    for (auto & f : flights) {
        f.res.reset(new llm_graph_result(runner.get_max_nodes()));
        f.landed = place.device ? llama_snapkv_event(place.device) : llama_snapkv_event();
    }

    // a plan is an estimate: where it does not fit after all, the next one is smaller
    const auto plans = llama_snapkv_make_plans(ctx, mem, sk.params, groups, place, n);
    for (size_t i = 0; i < plans.size(); ++i) {
        plan = plans[i];
        groups.size = plan.group;
        if (i == 0 || plan.chunk != plans[i - 1].chunk) {
            split_batch();
            find_cells();
        }
        try {
            allocate(plan);
            break;
        } catch (const std::runtime_error &) {
            drop();
            if (i + 1 == plans.size()) {
                throw;
            }
        }
    }

    record = std::make_shared<llama_snapkv_record>();
    record->n_prompt = (uint32_t) (n + shift);
    record->window = w;
}

// what can be taken from the vault, and room in it for the rest
void prefill_run::open_vault() {
    vault = &sk.vaults[seq_id];
    if (vault->layers.empty()) {
        vault->layers = llama_snapkv_vault_layers(ctx);
    }
    // the window's queries are computed, and such as are wanted if the vault has not kept them
    const uint32_t query0 = n - llama_snapkv_n_queries(sk.params, n);
    const auto usable = [&](uint32_t pos) { return mem.iswa ? vault->max_tail_pos(pos, ctx.get_model().hparams.n_swa) : pos; };
    n_past = usable(std::min(vault->common_prefix(prompt.tokens, n), n - n_new_min()));
    vault->truncate(n_past);
    if (n_past - vault->n_queries() > query0) {
        n_past = usable(std::min(n_past, query0));
        vault->truncate(n_past);
    }
    const size_t bytes = vault->bytes() + vault->bytes_of(n - n_past, n - std::max(query0, n_past)) + (mem.iswa ? llama_snapkv_tail_bytes(*mem.iswa->get_swa(), n_tail()) : 0);
    if (sk.params.vault_limit > 0 && bytes > sk.params.vault_limit) {
        throw std::invalid_argument(format("the vault needs %.1f MiB for a prompt of %u tokens and its limit is %.1f MiB: raise the limit, or turn the vault off",
                bytes / 1048576.0, n, sk.params.vault_limit / 1048576.0));
    }
    added = vault->reserve(place.device, sk.vault_dir, n - n_past, query0);
}

uint32_t prefill_run::n_new_min() const {
    return std::min(n, std::max(w, MIN_NEW));
}

// rows of sliding-window layers that the vault keeps: a window for each place within the prompt's last tokens to go on from
uint32_t prefill_run::n_tail() const {
    return std::min(n, ctx.get_model().hparams.n_swa + n_new_min());
}

static const auto & staged(const llama_snapkv_staging & staging, int32_t il) {
    return access::layers(*staging.full)[access::map_layer_ids(*staging.full).at(il)];
}

// K and V of a group's layers for the rows that are not computed
void prefill_run::load_rows(uint32_t ig) {
    for (uint32_t ic = ig * groups.size; n_past > 0 && ic < std::min<uint32_t>((ig + 1) * groups.size, groups.ils.size()); ++ic) {
        const auto & to = staged(staging, groups.ils[ic]);
        const auto & own = access::layers(*mem.base)[ic];
        for (const bool is_v : { false, true }) {
            ggml_tensor * t = is_v ? to.v : to.k;
            if (prompt.n_cells > 0) {
                ggml_tensor * from = (is_v ? own.v_stream : own.k_stream)[target.strm[0]];
                std::vector<uint8_t> rows(n_past * t->nb[1]);
                ggml_backend_tensor_get(from, rows.data(), prompt.cell0 * from->nb[1], rows.size());
                ggml_backend_tensor_set(t, rows.data(), 0, rows.size());
                continue;
            }
            vault->each(is_v, ic, 0, n_past, [&](const uint8_t * data, uint32_t pos, uint32_t n_rows) {
                ggml_backend_tensor_set(t, data, pos * t->nb[1], n_rows * t->nb[1]);
            });
        }
    }
}

// K, V and queries of a group's layers for those that were
void prefill_run::save_rows() {
    for (const auto & layer : layers) {
        const auto & from = staged(staging, layer.il);
        vault->take_memory(added, layer.ic);
        ggml_backend_tensor_get(from.k, added.k[layer.ic], n_past * from.k->nb[1], (n - n_past) * from.k->nb[1]);
        ggml_backend_tensor_get(from.v, added.v[layer.ic], n_past * from.v->nb[1], (n - n_past) * from.v->nb[1]);

        vault->layers[layer.ic].scale = layer.scale;
        vault->layers[layer.ic].softcap = layer.softcap;
        const int64_t n_rows = n - added.query0;
        const size_t row = layer.head_dim * sizeof(float);
        for (int64_t h = 0; h < layer.n_head; ++h) {
            ggml_backend_tensor_get(staging.queries, added.q[layer.ic].data() + h * n_rows * layer.head_dim,
                    layer.slot * staging.queries->nb[1] + ((h + 1) * staging.n_queries - n_rows) * row, n_rows * row);
        }
    }
}

void prefill_run::allocate(const llama_snapkv_plan & p) {
    staging = llama_snapkv_make_staging(ctx, mem, sk.params, groups, place, p, n, n - n_past);
    compressor = std::make_unique<llama_snapkv_compressor>(ctx, sk, runner, place, staging, n, n_kept, prompt.n_rows - w, shift, before);
    if (mem.iswa) {
        std::swap(access::kv_base(*mem.iswa), staging.kv);
        base_swapped = true;
    }

    // the largest graph of a group, before hours go into the ones before it
    begin_group(0);
    begin_chunk(0);
    const uint32_t i = (uint32_t) ubatches.size() - 1;
    access::n_kv(base_mctx()) = (uint32_t) GGML_PAD(n, LLAMA_SNAPKV_N_KV_PAD);
    access::n_outputs(ctx) = 1;
    runner.reserve([&](ggml_context * c) { return build_chunk(c, *flights[0].res, groups.count() - 1, i); });
    // of full size, and next to the end: a view of the mask at the start has not so many columns
    const uint32_t full = i > 0 ? i - 1 : 0;
    runner.reserve([&](ggml_context * c) { return build_chunk(c, *flights[0].res, 0, full); });
}

void prefill_run::split_batch() {
    ubatches.clear();
    starts.clear();
    const auto & model = ctx.get_model();
    const auto & cp = ctx.get_cparams();

    const uint32_t n_new = n - n_past;
    llama_batch_ext batch(n_new, model.hparams.n_embd_inp(), model.hparams.n_embd_inp_enc(), cp.kv_unified ? LLAMA_MAX_SEQ : (llama_seq_id) cp.n_seq_max,
            nullptr, model.vocab.n_tokens(), model.hparams.n_pos_per_embd());
    batch.tokens.resize(n_new);
    for (uint32_t i = 0; i < n_new; ++i) {
        auto & t = batch.tokens[i];
        t.id = prompt.tokens[n_past - prompt.n_cells + i];
        t.output = i + 1 == n_new;
        t.seq_ids = { seq_id };
        t.pos = { (llama_pos) (n_past + i) + shift, 0, 0, 0 };
    }
    if (!balloc.init(batch, model.vocab, false)) {
        throw std::invalid_argument("a token id is outside of the vocabulary, or the sequence id is not below n_seq_max");
    }

    balloc.split_reset();
    uint32_t p = n_past;
    while (p < n) {
        // as llama_kv_cache::init_batch() chooses
        ubatches.push_back(mem.base->get_n_stream() == 1 ? balloc.split_simple(plan.chunk) : balloc.split_equal(plan.chunk, true, 0));
        GGML_ASSERT(ubatches.back().n_tokens > 0);
        starts.push_back(p);
        p += ubatches.back().n_tokens;
    }
}

void prefill_run::find_cells() {
    sinfos_base.clear();
    // a row is its own cell in the staging cache
    for (size_t i = 0; i < ubatches.size(); ++i) {
        llama_kv_cache::slot_info sinfo = { 0, 0, {}, {} };
        sinfo.resize(1);
        sinfo.strm[0] = 0;
        for (uint32_t j = 0; j < ubatches[i].n_tokens; ++j) {
            sinfo.idxs[0].push_back(starts[i] + j);
        }
        sinfos_base.push_back(std::move(sinfo));
    }

    // the same cells for every group, since all layers of the sliding-window cache share them. a group's last tokens take
    // those of tokens before the first ones, whose rows are still there for the next group's layers
    if (mem.iswa) {
        llama_kv_cache & swa = *mem.iswa->get_swa();
        swa.seq_rm(seq_id, prompt.pos0, -1);
        if (vault && n_past > 0) {
            const uint32_t n_swa = ctx.get_model().hparams.n_swa;
            if (!llama_snapkv_load_tail(swa, seq_id, n_past, n_swa, *vault->find_tail(n_past, n_swa))) {
                throw no_room();
            }
        }
        sinfos_swa = swa.prepare(ubatches);
        if (sinfos_swa.empty()) {
            throw no_room();
        }
        cells_swa = std::make_unique<llama_kv_cells>(swa.get_cells(seq_id));
    }

    // cells that go before are used again: their rows are in the staging cache before they are overwritten
    target = prompt.n_cells > 0 ? llama_snapkv_cells_at(*mem.base, seq_id, prompt.cell0, n_kept + w) : llama_snapkv_free_cells(*mem.base, seq_id, n_kept + w);
    if (target.empty()) {
        throw no_room();
    }
}

void prefill_run::begin_group(uint32_t ig) {
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

// the window's queries of this chunk, for the scores
void prefill_run::save_queries(ggml_context * gctx, ggml_cgraph * gf, const llama_snapkv_layer & layer, ggml_tensor * attn, uint32_t i) const {
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

ggml_cgraph * prefill_run::build_chunk(ggml_context * gctx, llm_graph_result & res, uint32_t ig, uint32_t i) {
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
    for (uint32_t ic = 0; ic < attns.size(); ++ic) {
        attns[ic] = llama_snapkv_graph_attn(res, groups.ils[ic]);
        ggml_tensor *& mask = attns[ic]->src[3];
        cut.mask_input = mask;
        mask = staging.mask_view(gctx, ic, mask->ne[0], mask->ne[1], starts[i]);
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

void prefill_run::compute_chunk(uint32_t ig, uint32_t i) {
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
void prefill_run::land(flight & f) {
    if (f.n_tokens == 0) {
        return;
    }
    f.landed.synchronize();
    done += f.n_tokens;
    f.n_tokens = 0;
    if (!report()) {
        throw aborted();
    }
}

void prefill_run::land_all() {
    runner.finish();
    for (uint32_t k = 0; k < std::size(flights); ++k) {
        land(flights[(n_started + k) % std::size(flights)]); // the oldest first
    }
}

void prefill_run::take_logits(const flight & f) {
    ggml_backend_tensor_get(f.res->t_logits, llama_snapkv_reserve_logits(ctx), 0, ctx.get_model().vocab.n_tokens() * sizeof(float));
}

// the record names positions of tokens, the scores have chosen rows
void prefill_run::rows_to_positions() {
    for (size_t ic = 0; ic < record->layers.size(); ++ic) {
        auto & layer = record->layers[ic];
        const uint32_t n_old = before ? before->layers[ic].n_kept : 0; // rows of the kept prefix
        for (size_t i = 0; i < layer.ids.size(); ++i) {
            const uint32_t row = (uint32_t) layer.ids[i];
            const size_t head = i / layer.n_kept;
            layer.ids[i] = row < n_old ? before->layers[ic].ids[head * n_old + row] : (int32_t) row + shift;
        }
    }
}

bool prefill_run::report() {
    t_last_report_us = ggml_time_us();
    if (!stop && prompt.progress && !prompt.progress(done, (uint64_t) (n - n_past) * groups.count(), prompt.user_data)) {
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

void prefill_run::run() {
    prepare();

    auto & stats = sk.stats;
    stats.layer_group = groups.size;
    stats.chunk = plan.chunk;
    stats.bytes_staging = staging.bytes_kv;
    stats.bytes_hidden = staging.hidden.bytes_device + staging.hidden.bytes_host + staging.bytes_queries;
    stats.bytes_hidden_host = place.device ? staging.hidden.bytes_host : 0;
    stats.bytes_mask = staging.bytes_mask;
    sk.scores.assign(sk.params.keep_scores ? groups.ils.size() : 0, {});
    sk.coverage.assign(groups.ils.size(), {});

    for (uint32_t ig = 0; ig < groups.count(); ++ig) {
        begin_group(ig);
        load_rows(ig);
        for (uint32_t i = 0; i < ubatches.size(); ++i) {
            begin_chunk(i);
            compute_chunk(ig, i);
        }
        land_all();
        if (vault) {
            save_rows();
        }
        compressor->score(layers, *record);
        compressor->evict(layers, *record, *mem.base, target);
    }
    if (prompt.n_rows < prompt.n_rows_max) {
        const uint32_t n_rows = compressor->rows_for_coverage();
        if (n_rows < n_kept) {
            compressor->shrink(n_rows, *record, *mem.base, target);
            target.idxs[0].resize(n_rows + w);
            n_kept = n_rows;
        }
    }
    if (prompt.n_cells > 0) {
        rows_to_positions();
        mem.base->seq_rm(seq_id, -1, -1);
    }

    llama_snapkv_place_cells(*mem.base, seq_id, target, record);
    if (vault) {
        if (mem.iswa) {
            llama_snapkv_save_tail(*mem.iswa->get_swa(), seq_id, n, n_tail(), added);
        }
        vault->append(std::move(added), prompt.tokens + n_past);
        stats.bytes_vault = vault->bytes();
    }
    stats.n_reused = n_past;
    stats.n_kept = n_kept + w;
    stats.bytes_compute = runner.get_bytes();
    stats.bytes_weights = weights ? weights->get_bytes() : 0;
    stats.coverage = compressor->get_coverage();
    stats.ratio_fused = compressor->get_ratio_fused();

    llama_snapkv_show_logits(ctx);
    finished = true;
}

} // namespace

static int32_t run_prefill(llama_context & ctx, llama_snapkv & sk, const llama_snapkv_prompt & prompt) {
    try {
        prefill_run run(ctx, sk, prompt);
        run.run();
        return 0;
    } catch (const aborted &) {
        llama_snapkv_set_error("the prefill was aborted");
        return 2;
    } catch (const llama_snapkv_compute_error & e) {
        llama_snapkv_set_error(e.status == GGML_STATUS_ABORTED ? "the prefill was aborted" : e.what());
        return e.status == GGML_STATUS_ABORTED ? 2 : -2;
    } catch (const no_room &) {
        llama_snapkv_set_error(format("no free cells for the kept rows of sequence %d: remove other sequences first", prompt.seq_id));
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

int32_t llama_snapkv_prefill_groups(llama_context & ctx, llama_snapkv & sk, const llama_snapkv_prompt & prompt) {
    const int32_t rc = run_prefill(ctx, sk, prompt);
    try {
        llama_snapkv_reserve(ctx); // where this fails, decode() would throw out of the C API
    } catch (const std::exception & e) {
        ctx.get_memory()->seq_rm(prompt.seq_id, -1, -1);
        llama_snapkv_set_error(format("out of memory after the prefill: %s", e.what()));
        return -2;
    }
    return rc;
}
