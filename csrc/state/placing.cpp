#include "state/placing.h"

#include "upstream/access.h"
#include "upstream/snapkv-alloc.h"

#include "llama-context.h"

#include <algorithm>
#include <map>
#include <new>

using access = llama_snapkv_access;

// ubatches of the batch that this thread evaluates
static thread_local uint32_t n_placed = 0;

void llama_snapkv_note_placed() {
    if (llama_snapkv_alloc_fails("step")) {
        throw std::bad_alloc();
    }
    n_placed++;
}

llama_snapkv_placing::llama_snapkv_placing(llama_context & ctx) :
    ctx(ctx), mem(llama_snapkv_memory_of(ctx)) {
    if (!mem.recr) {
        return;
    }
    cells = mem.recr->cells;
    head = mem.recr->head;
    used = mem.recr->used;
    n = mem.recr->n;
    rs_z = mem.recr->rs_z;
    n_placed = 0;
}

bool llama_snapkv_placing::put_back(const llama_batch & batch) {
    if (!mem.recr) {
        return false;
    }
    std::map<llama_seq_id, llama_pos> begins;
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        const llama_seq_id seq_id = batch.seq_id ? batch.seq_id[i][0] : 0;
        const llama_pos pos = batch.pos ? batch.pos[i] : mem.base->seq_pos_max(seq_id) + 1;
        const auto [it, is_new] = begins.emplace(seq_id, pos);
        it->second = is_new ? pos : std::min(it->second, pos);
    }
    // llama_context::process_ubatch() forgets the last graph before it builds another, and has the new one when its memory is there
    if (n_placed == 0 || (n_placed == 1 && access::gf_res_prev_active(ctx) == nullptr)) {
        mem.recr->cells = cells;
        mem.recr->head = head;
        mem.recr->used = used;
        mem.recr->n = n;
        mem.recr->rs_z = rs_z;
        for (const auto & [seq_id, pos] : begins) {
            mem.base->seq_rm(seq_id, pos, -1);
        }
        return true;
    }
    for (llama_seq_id seq_id = 0; seq_id < (llama_seq_id) cells.size(); ++seq_id) {
        if (begins.count(seq_id) == 0 && is_moved(seq_id)) {
            mem.recr->seq_rm(seq_id, -1, -1);
            mem.base->seq_rm(seq_id, -1, -1);
        }
    }
    return false;
}

bool llama_snapkv_placing::is_moved(llama_seq_id seq_id) const {
    const int32_t before = cells[seq_id].tail;
    const int32_t now = mem.recr->cells[seq_id].tail;
    if (before < 0) {
        return false;
    }
    // a state that lay elsewhere than in its cell is copied there by the graph
    return now != before || (now >= 0 && cells[before].src != mem.recr->cells[now].src);
}
