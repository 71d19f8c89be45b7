#include "prefill/prefill.h"

#include "prefill/run.h"

#include "prefill/tail.h"
#include "staging/plan.h"
#include "state/cells.h"
#include "state/logits.h"

#include "llama-impl.h"

#include <algorithm>
#include <new>
#include <stdexcept>

using access = llama_snapkv_access;

llama_snapkv_prefill_run::llama_snapkv_prefill_run(llama_context & ctx, llama_snapkv & sk, const llama_snapkv_prompt & prompt) :
    ctx(ctx), sk(sk), prompt(prompt), seq_id(prompt.seq_id), n(prompt.n_cells + prompt.n_tokens), shift(prompt.pos0 - (llama_pos) prompt.n_cells), w(sk.params.window),
    n_kept(prompt.n_rows_max - sk.params.window), mem(llama_snapkv_memory_of(ctx)), n_past(prompt.n_cells), runner(ctx), balloc(ctx.get_model().hparams.n_pos_per_embd()),
    before(mem.base->snapkv.get(seq_id)),
    saved_abort(access::abort_callback(ctx)), saved_abort_data(access::abort_callback_data(ctx)) {
}

llama_snapkv_prefill_run::~llama_snapkv_prefill_run() {
    drop();
    ctx.set_abort_callback(saved_abort, saved_abort_data);
    if (!finished) {
        access::n_outputs(ctx) = 0;
        ctx.get_memory()->seq_rm(seq_id, -1, -1);
    }
}

// what a plan has allocated
void llama_snapkv_prefill_run::drop() {
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

void llama_snapkv_prefill_run::prepare() {
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

void llama_snapkv_prefill_run::allocate(const llama_snapkv_plan & p) {
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

void llama_snapkv_prefill_run::split_batch() {
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

void llama_snapkv_prefill_run::find_cells() {
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
                throw llama_snapkv_no_room();
            }
        }
        sinfos_swa = swa.prepare(ubatches);
        if (sinfos_swa.empty()) {
            throw llama_snapkv_no_room();
        }
        cells_swa = std::make_unique<llama_kv_cells>(swa.get_cells(seq_id));
    }

    // cells that go before are used again: their rows are in the staging cache before they are overwritten
    target = prompt.n_cells > 0 ? llama_snapkv_cells_at(*mem.base, seq_id, prompt.cell0, n_kept + w) : llama_snapkv_free_cells(*mem.base, seq_id, n_kept + w);
    if (target.empty()) {
        throw llama_snapkv_no_room();
    }
}

void llama_snapkv_prefill_run::run() {
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

static int32_t run_prefill(llama_context & ctx, llama_snapkv & sk, const llama_snapkv_prompt & prompt) {
    try {
        llama_snapkv_prefill_run run(ctx, sk, prompt);
        run.run();
        return 0;
    } catch (const llama_snapkv_aborted &) {
        llama_snapkv_set_error("the prefill was aborted");
        return 2;
    } catch (const llama_snapkv_compute_error & e) {
        llama_snapkv_set_error(e.status == GGML_STATUS_ABORTED ? "the prefill was aborted" : e.what());
        return e.status == GGML_STATUS_ABORTED ? 2 : -2;
    } catch (const llama_snapkv_no_room &) {
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
