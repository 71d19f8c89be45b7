#include "prefill/prefill.h"

#include "prefill/run.h"

#include "staging/plan.h"
#include "state/cells.h"
#include "state/lock.h"
#include "state/logits.h"
#include "state/recurrent.h"
#include "upstream/access.h"
#include "upstream/snapkv-wipe.h"

#include "llama-impl.h"

#include <algorithm>
#include <new>
#include <stdexcept>

using access = llama_snapkv_access;

llama_snapkv_prefill_run::llama_snapkv_prefill_run(llama_context & ctx, llama_snapkv & sk, const llama_snapkv_task & given) :
    ctx(ctx), sk(sk), task(given), seq_id(task.prompt.seq_id), mem(llama_snapkv_memory_of(ctx)), positions({ mem.base->snapkv.get(seq_id), task.pos0 - (llama_pos) task.n_cells }),
    selection(sk.params, task, n_tail(), ctx.get_model().hparams.n_layer()), runner(ctx), progress(ctx, task.prompt), flights(runner, progress), batches(ctx, mem, task), others(ctx, sk, mem, task, runner, progress) {
}

llama_snapkv_prefill_run::~llama_snapkv_prefill_run() {
    drop();
    if (!finished) {
        access::n_outputs(ctx) = 0;
        ctx.get_memory()->seq_rm(seq_id, -1, -1);
    }
}

// what a plan has allocated
void llama_snapkv_prefill_run::drop() {
    runner.finish();
    staging.hidden.finish();
    batches.end();
    compressor.reset();
    weights.clear();
    staging = {};
    runner.make_lanes(1);
}

void llama_snapkv_prefill_run::prepare() {
    if (mem.iswa && sk.params.n_ubatch > ctx.n_ubatch()) {
        throw std::invalid_argument(format("n_ubatch %u is more than the %u for which the cache of the sliding-window layers has cells: make it smaller, or that of the context larger", sk.params.n_ubatch, ctx.n_ubatch()));
    }

    const auto & hparams = ctx.get_model().hparams;
    groups = llama_snapkv_groups(ctx.get_model(), *mem.base);
    int64_t n_heads = 0;
    for (const int32_t il : groups.ils) {
        n_heads += hparams.n_head_kv(il);
    }
    // others have their turn after each chunk, and a selection needs the votes of one group before the next
    place = llama_snapkv_make_place(ctx, mem, groups, !others.wait() && sk.params.prefill == LLAMA_SNAPKV_PREFILL_EXACT);
    known = std::make_unique<llama_snapkv_known_rows>(ctx, sk, mem, task, place.device);

    if (mem.recr) {
        llama_snapkv_own_memory(*mem.recr, seq_id);
    }
    known->load_state();

    runner.begin(ctx.graph_max_nodes(std::max(sk.params.n_ubatch, ctx.n_ubatch())) + 32 * n_heads + 1024, others.wait()); // stock ops take about 20 for each KV head
    flights.begin(runner.get_max_nodes(), place.streams());

    // cells that go before are used again: their rows are in the staging cache before they are overwritten
    if (task.n_cells > 0) {
        target = llama_snapkv_cells_at(*mem.base, seq_id, task.cell0, task.n_kept_max);
    }
    if (target.empty()) {
        target = llama_snapkv_free_cells(*mem.base, seq_id, task.n_kept_max);
    }
    if (target.empty()) {
        throw llama_snapkv_no_room();
    }

    // a plan is an estimate: where it does not fit after all, the next one is smaller
    const auto plans = llama_snapkv_make_plans(ctx, mem, sk.params, groups, place, task.n_rows());
    for (size_t i = 0; i < plans.size(); ++i) {
        plan = plans[i];
        groups.size = plan.group;
        place.gather();
        if (plan.deals) {
            place.deal(groups);
        }
        if (i == 0 || plan.chunk != plans[i - 1].chunk) {
            if (!known->load_swa()) {
                throw llama_snapkv_no_room();
            }
            batches.split(known->n(), plan.chunk, known->make_stops(plan.chunk));
        }
        try {
            allocate();
            break;
        } catch (const std::runtime_error &) {
            drop();
            if (i + 1 == plans.size()) {
                throw;
            }
        }
    }
    progress.expect((uint64_t) (task.n_rows() - known->n()) * groups.count());

    record = std::make_shared<llama_snapkv_record>();
    record->n_prompt = (uint32_t) task.end();
    record->window = task.window;
}

void llama_snapkv_prefill_run::allocate() {
    const auto & rows = batches.rows();
    const bool aligned = std::all_of(rows.begin(), rows.end(), [](uint32_t row) { return row % llama_snapkv_staging::MASK_ALIGNMENT == 0; });
    staging = llama_snapkv_make_staging(ctx, mem, sk.params, groups, place, plan, task, task.n_rows() - known->n(), aligned);
    compressor = std::make_unique<llama_snapkv_compressor>(ctx, sk, runner, place, staging, task, positions, selection);

    inputs = {};
    inputs.begin(place.streams(), max_input_bytes(batches.count() - 1));
    if (place.lends) {
        weights.emplace(place.device, llama_snapkv_lent_weights(place.device, llama_snapkv_lender::host));
    }
    for (size_t k = 0; place.is_dealt() && k < place.gpus.size(); ++k) {
        weights.emplace(place.gpus[k], llama_snapkv_lent_weights(place.gpus[k], llama_snapkv_lender::gpus));
    }
    runner.make_lanes((uint32_t) std::max<size_t>(1, place.gpus.size()));

    // the largest graph of a group, before hours go into the ones before it
    begin_group(0);
    begin_chunk(0);
    const uint32_t i = batches.count() - 1;
    batches.show_all_cells();
    access::n_outputs(ctx) = 1;
    reserve(groups.count() - 1, i);
    reserve(0, batches.last_full()); // a view of the mask at the start has not so many columns
}

// for the graphs of a group's stages
void llama_snapkv_prefill_run::reserve(uint32_t ig, uint32_t i) {
    const auto of_group = place.stages(groups, ig);
    for (uint32_t s = 0; s < of_group.size(); ++s) {
        if (!of_group[s].is_empty()) {
            runner.use_lane(s);
            runner.reserve([&](ggml_context * c) { return build_chunk(c, flights.scratch(), of_group, s, ig, i); });
        }
    }
    runner.use_lane(0);
}

// the record names positions of tokens, the scores have chosen rows
void llama_snapkv_prefill_run::rows_to_positions() {
    for (size_t ic = 0; ic < record->layers.size(); ++ic) {
        auto & layer = record->layers[ic];
        for (size_t i = 0; i < layer.ids.size(); ++i) {
            layer.ids[i] = positions.of((uint32_t) ic, i / layer.n_kept, (uint32_t) layer.ids[i]);
        }
    }
}

void llama_snapkv_prefill_run::run() {
    prepare();

    auto & stats = sk.stats;
    stats.layer_group = groups.size;
    stats.n_ubatch = plan.chunk;
    stats.bytes_kv_group = staging.bytes_kv;
    stats.bytes_hidden = staging.hidden.bytes_device + staging.hidden.bytes_host + staging.bytes_queries;
    stats.bytes_hidden_host = place.streams().empty() ? 0 : staging.hidden.bytes_host;
    stats.bytes_mask = staging.bytes_mask;
    sk.scores.assign(sk.params.keep_scores ? groups.ils.size() : 0, {});
    sk.coverage.assign(groups.ils.size(), {});

    for (uint32_t ig = 0; ig < groups.count(); ++ig) {
        begin_group(ig);
        known->load(staging, groups, ig, target.strm[0]);
        for (uint32_t i = 0; i < batches.count(); ++i) {
            begin_chunk(i);
            if (ig == 0 && i == 0) {
                llama_snapkv_wipe_states(ctx);
            }
            compute_chunk(ig, i);
            if (known->wants_state(batches.end(i))) {
                flights.land_all();
                known->save_state(batches.end(i), groups.il0(ig), groups.il1(ig));
            }
            // after the last one the context has the prefill's logits
            if (others.wait() && !(is_last_group(ig) && batches.is_last(i))) {
                flights.land_all();
                others.turn(target, batches);
            }
        }
        flights.land_all();
        known->load_queries(staging, layers);
        known->save(staging, layers);
        {
            const llama_snapkv_lock lock(ctx, seq_id, /*all =*/true); // it calls taps
            compressor->score(layers, *record);
        }
        compressor->evict(layers, *record, *mem.base, target);
        select(ig);
    }
    const uint32_t n_kept = compressor->shrink(*record, *mem.base, target) + task.window;
    target.idxs[0].resize(n_kept);
    if (task.n_cells > 0 || task.selected) {
        rows_to_positions();
    }
    if (task.n_cells > 0) {
        mem.base->seq_rm(seq_id, -1, -1);
    }
    join_tails();

    llama_snapkv_place_cells(*mem.base, seq_id, target, record);
    stats.bytes_vault = known->close();
    stats.n_cached = known->n();
    stats.n_kept = n_kept;
    stats.bytes_compute = runner.get_bytes();
    stats.bytes_weights_lent = 0;
    for (const auto & [_, lent] : weights) {
        stats.bytes_weights_lent += lent.get_bytes();
    }
    stats.coverage = compressor->get_coverage();
    stats.ratio_fused = compressor->get_ratio_fused();

    llama_snapkv_show_logits(ctx);
    finished = true;
}

static int32_t run_prefill(llama_context & ctx, llama_snapkv & sk, const llama_snapkv_task & task) {
    try {
        llama_snapkv_prefill_run run(ctx, sk, task);
        run.run();
        return 0;
    } catch (const llama_snapkv_aborted &) {
        llama_snapkv_set_error("the prefill was aborted");
        return 2;
    } catch (const llama_snapkv_compute_error & e) {
        llama_snapkv_set_error(e.status == GGML_STATUS_ABORTED ? "the prefill was aborted" : e.what());
        return e.status == GGML_STATUS_ABORTED ? 2 : -2;
    } catch (const llama_snapkv_no_room &) {
        llama_snapkv_set_error(format("no free cells for the kept rows of sequence %d: remove other sequences first", task.prompt.seq_id));
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

int32_t llama_snapkv_prefill_groups(llama_context & ctx, llama_snapkv & sk, const llama_snapkv_task & task) {
    const int32_t rc = run_prefill(ctx, sk, task);
    try {
        llama_snapkv_reserve(ctx); // where this fails, decode() would throw out of the C API
    } catch (const std::exception & e) {
        ctx.get_memory()->seq_rm(task.prompt.seq_id, -1, -1);
        llama_snapkv_set_error(format("out of memory after the prefill: %s", e.what()));
        return -2;
    }
    return rc;
}
