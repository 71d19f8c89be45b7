#include "prefill/batches.h"

#include "upstream/access.h"

#include <algorithm>
#include <stdexcept>

using access = llama_snapkv_access;

llama_snapkv_batches::llama_snapkv_batches(llama_context & ctx, const llama_snapkv_memory & mem, const llama_snapkv_task & task) :
    ctx(ctx), mem(mem), task(task), balloc(ctx.get_model().hparams.n_pos_per_embd()) {
}

void llama_snapkv_batches::split(uint32_t n_past, uint32_t n_chunk, const std::vector<uint32_t> & stops) {
    if (mem.recr && !ubatches.empty()) {
        cells_recr.restore(*mem.recr); // from before the chunks of another size
    }
    ubatches.clear();
    starts.clear();
    const auto & model = ctx.get_model();
    const auto & cp = ctx.get_cparams();

    const uint32_t n_new = task.n_rows() - n_past;
    llama_batch_ext batch(n_new, model.hparams.n_embd_inp(), model.hparams.n_embd_inp_enc(), cp.kv_unified ? LLAMA_MAX_SEQ : (llama_seq_id) cp.n_seq_max,
            nullptr, model.vocab.n_tokens(), model.hparams.n_pos_per_embd());
    batch.tokens.resize(n_new);
    for (uint32_t i = 0; i < n_new; ++i) {
        auto & t = batch.tokens[i];
        t.id = task.prompt.tokens[n_past - task.n_cells + i];
        t.output = i + 1 == n_new;
        t.seq_ids = { task.prompt.seq_id };
        t.pos = { task.end() - (llama_pos) (n_new - i), 0, 0, 0 };
    }
    if (!balloc.init(batch, model.vocab, false)) {
        throw std::invalid_argument("a token id is outside of the vocabulary, or the sequence id is not below n_seq_max");
    }

    balloc.split_reset();
    auto stop = stops.begin();
    for (uint32_t row = n_past; row < task.n_rows(); row += ubatches.back().n_tokens) {
        stop = std::upper_bound(stop, stops.end(), row);
        const uint32_t n_next = stop == stops.end() ? n_chunk : std::min(n_chunk, *stop - row);
        // as llama_kv_cache::init_batch() and llama_memory_hybrid::init_batch() choose
        const bool unified = mem.base->get_n_stream() == 1;
        ubatches.push_back(unified && !mem.recr ? balloc.split_simple(n_next) : balloc.split_equal(n_next, !unified, 0));
        GGML_ASSERT(ubatches.back().n_tokens > 0);
        starts.push_back(row);
    }
    find_cells();
}

void llama_snapkv_batches::find_cells() {
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
        sinfos_swa = swa.prepare(ubatches);
        if (sinfos_swa.empty()) {
            throw llama_snapkv_no_room();
        }
        cells_swa = std::make_unique<llama_kv_cells>(swa.get_cells(task.prompt.seq_id));
    }
    if (mem.recr) {
        cells_recr = llama_snapkv_recurrent_cells(*mem.recr);
    }
}

void llama_snapkv_batches::begin_group(llama_kv_cache & full) {
    if (mem.iswa) {
        auto & swa = *mem.iswa->get_swa();
        access::v_cells(swa)[swa.get_stream(task.prompt.seq_id)] = *cells_swa;
    }
    if (mem.recr) {
        cells_recr.restore(*mem.recr);
    }
    chunk = llama_snapkv_chunk_memory(mem, full, sinfos_base, sinfos_swa, ubatches);
}

void llama_snapkv_batches::begin_chunk(uint32_t i) {
    if (i > 0) {
        chunk.next();
    }
    chunk.apply((uint32_t) GGML_PAD(end(i), LLAMA_SNAPKV_N_KV_PAD));
}

void llama_snapkv_batches::show_all_cells() {
    chunk.set_n_kv((uint32_t) GGML_PAD(task.n_rows(), LLAMA_SNAPKV_N_KV_PAD));
}
