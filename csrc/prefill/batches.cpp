#include "prefill/batches.h"

#include "state/cells.h"
#include "upstream/access.h"

#include <algorithm>
#include <stdexcept>

using access = llama_snapkv_access;

llama_snapkv_batches::llama_snapkv_batches(llama_context & ctx, const llama_snapkv_memory & mem, const llama_snapkv_task & task) :
    ctx(ctx), mem(mem), task(task), balloc(ctx.get_model().hparams.n_pos_per_embd()) {
}

void llama_snapkv_batches::split(uint32_t n_past, uint32_t n_chunk, const std::vector<uint32_t> & stops) {
    if (mem.recr && ubatches.empty()) {
        cell_recr = llama_snapkv_recurrent_cell(*mem.recr, task.prompt.seq_id);
    } else if (mem.recr) {
        cell_recr.restore(*mem.recr); // from before the chunks of another size
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
        t.id = task.prompt.tokens[task.token_of(n_past + i)];
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
        llama_ubatch & ubatch = ubatches.back();
        GGML_ASSERT(ubatch.n_tokens > 0);
        for (uint32_t i = 0; task.selected && i < ubatch.n_tokens; ++i) {
            ubatch.pos[i] = task.pos0 + (llama_pos) task.token_of(row + i); // a batch may not have gaps
        }
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
        const auto & cells = swa.get_cells(task.prompt.seq_id);
        if (task.prompt.on_yield && swa.get_n_stream() == 1 && ctx.n_seq_max() > 1) {
            make_ring(swa);
            cells_swa = std::make_unique<llama_kv_cells>(cells.cp(cells_ring));
            return;
        }
        sinfos_swa = swa.prepare(ubatches);
        if (sinfos_swa.empty()) {
            throw llama_snapkv_no_room();
        }
        cells_swa = std::make_unique<llama_kv_cells>(cells);
    }
}

// no more cells than the sequence needs, and the same in all groups: those it has, which begin the ring, and such as no other needs
void llama_snapkv_batches::make_ring(llama_kv_cache & swa) {
    const llama_seq_id seq_id = task.prompt.seq_id;
    const auto & hparams = ctx.get_model().hparams;
    auto & cells = access::v_cells(swa)[0];
    cells_ring.clear();
    sinfos_swa.clear();
    const auto own = cells.seq_pos_get(seq_id); // a copy, by position
    for (const auto & [pos, i] : own) {
        if (cells.seq_count(i) > 1) {
            throw std::invalid_argument("the sequence shares cells of sliding-window layers with another: remove that one, or let others wait (no on_yield)");
        }
        if (llama_hparams::is_masked_swa(hparams.n_swa, hparams.swa_type, pos, task.pos0 + (llama_pos) starts[0] - (llama_pos) task.n_cells)) {
            cells.rm(i);
        } else {
            cells_ring.push_back(i);
        }
    }
    uint32_t n_chunk = 0;
    uint32_t n_new = 0;
    for (const auto & ubatch : ubatches) {
        n_chunk = std::max(n_chunk, ubatch.n_tokens);
        n_new += ubatch.n_tokens;
    }
    const auto n_own = (uint32_t) cells_ring.size();
    const uint32_t n_ring = std::min(n_own + n_new, std::max(n_own, hparams.n_swa + n_chunk));
    const auto more = n_ring > n_own ? llama_snapkv_free_cells(swa, seq_id, n_ring - n_own, false) : llama_kv_cache::slot_info();
    if (n_ring > n_own && more.empty()) {
        throw llama_snapkv_no_room();
    }
    for (uint32_t k = 0; k < n_ring - n_own; ++k) {
        const uint32_t i = more.idxs[0][k];
        if (!cells.is_empty(i)) { // out of its sequence's window, and so are those before it
            swa.seq_rm(cells.seq_get(i), 0, cells.pos_get(i) + 1);
        }
        cells_ring.push_back(i);
    }
    uint32_t next = n_own;
    for (const auto & ubatch : ubatches) {
        llama_kv_cache::slot_info sinfo = { 0, 0, {}, {} };
        sinfo.resize(1);
        sinfo.strm[0] = 0;
        for (uint32_t j = 0; j < ubatch.n_tokens; ++j, ++next) {
            sinfo.idxs[0].push_back(cells_ring[next % n_ring]);
        }
        sinfos_swa.push_back(std::move(sinfo));
    }
}

void llama_snapkv_batches::begin_group(llama_kv_cache & full) {
    if (mem.iswa) {
        auto & swa = *mem.iswa->get_swa();
        auto & cells = access::v_cells(swa)[swa.get_stream(task.prompt.seq_id)];
        if (cells_ring.empty()) {
            cells = *cells_swa;
        } else {
            cells.set(cells_ring, *cells_swa);
        }
    }
    if (mem.recr) {
        cell_recr.restore(*mem.recr);
    }
    chunk = llama_snapkv_chunk_memory(mem, full, sinfos_base, sinfos_swa, ubatches);
}

void llama_snapkv_batches::begin_chunk(uint32_t i) {
    if (i > 0) {
        chunk.next();
    }
    chunk.apply();
    show_cells_of(i);
}

void llama_snapkv_batches::show_all_cells() {
    chunk.set_n_kv((uint32_t) GGML_PAD(task.n_rows(), LLAMA_SNAPKV_N_KV_PAD));
}

void llama_snapkv_batches::show_cells_of(uint32_t i) {
    chunk.set_n_kv((uint32_t) GGML_PAD(end(i), LLAMA_SNAPKV_N_KV_PAD));
}

uint32_t llama_snapkv_batches::last_full() const {
    uint32_t res = 0;
    for (uint32_t i = 1; i + 1 < count(); ++i) {
        res = n_tokens(i) >= n_tokens(res) ? i : res;
    }
    return res;
}
