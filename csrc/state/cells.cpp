// Cells of a compact cache: how many there are, which are free, and what lies in them.
#include "state/cells.h"

#include "upstream/access.h"

#include "llama-batch.h"

#include <algorithm>

using access = llama_snapkv_access;

static thread_local uint32_t scope_n_cells = 0;
static thread_local bool scope_all = false;

llama_snapkv_cells_scope::llama_snapkv_cells_scope(uint32_t n_cells, bool all) {
    scope_n_cells = n_cells;
    scope_all = all;
}

llama_snapkv_cells_scope::~llama_snapkv_cells_scope() {
    scope_n_cells = 0;
    scope_all = false;
}

uint32_t llama_snapkv_n_cells(uint32_t kv_size, bool is_swa) {
    if (scope_n_cells == 0 || (is_swa && !scope_all)) {
        return kv_size;
    }
    return std::min(kv_size, scope_n_cells);
}

llama_kv_cache::slot_info llama_snapkv_free_cells(llama_kv_cache & base, llama_seq_id seq_id, uint32_t n_cells, bool side_by_side) {
    llama_batch_allocr allocr(1);
    llama_ubatch rows = allocr.ubatch_reserve(n_cells, 1);
    rows.seq_id_unq[0] = seq_id;
    for (uint32_t i = 0; i < n_cells; ++i) {
        rows.n_seq_id[i] = 1;
        rows.seq_id[i] = rows.seq_id_unq;
    }
    return base.find_slot(rows, side_by_side);
}

llama_kv_cache::slot_info llama_snapkv_cells_at(const llama_kv_cache & base, llama_seq_id seq_id, uint32_t cell0, uint32_t n_cells) {
    const uint32_t stream = base.get_stream(seq_id);
    const auto & cells = base.get_cells(seq_id);
    const llama_kv_cache::slot_info none = { stream, stream, {}, {} };
    if (cell0 + n_cells > base.get_size()) {
        return none;
    }
    auto res = none;
    res.resize(1);
    res.strm[0] = stream;
    for (uint32_t i = cell0; i < cell0 + n_cells; ++i) {
        if (!cells.is_empty(i) && (cells.seq_count(i) > 1 || !cells.seq_has(i, seq_id))) {
            return none;
        }
        res.idxs[0].push_back(i);
    }
    return res;
}

llama_snapkv_held_cells::llama_snapkv_held_cells(llama_kv_cache & kv, llama_seq_id seq_id, const std::vector<uint32_t> & idxs) {
    if (kv.get_n_stream() > 1 || idxs.empty()) {
        return;
    }
    this->idxs = idxs;
    cells = &access::v_cells(kv)[0];
    before = cells->cp(idxs);
    for (const uint32_t i : idxs) {
        if (!cells->is_empty(i)) {
            cells->rm(i);
        }
        cells->pos_set(i, 0); // the same one for all: none is out of a window that ends at the last one
        cells->seq_add(i, seq_id);
    }
}

void llama_snapkv_held_cells::release() {
    if (cells) {
        cells->set(idxs, before);
    }
}

void llama_snapkv_place_cells(llama_kv_cache & base, llama_seq_id seq_id, const llama_kv_cache::slot_info & target, llama_snapkv_record_ptr record) {
    auto & cells = access::v_cells(base)[target.strm[0]];
    const auto & idxs = target.idxs[0];
    for (size_t i = 0; i < idxs.size(); ++i) {
        cells.pos_set(idxs[i], (llama_pos) (record->n_prompt - idxs.size() + i));
        cells.seq_add(idxs[i], seq_id);
    }
    access::v_heads(base)[target.strm[0]] = idxs.back() + 1;
    base.snapkv.set(seq_id, std::move(record));
}

std::pair<uint32_t, uint32_t> llama_snapkv_cells_before(const llama_kv_cache & base, llama_seq_id seq_id, llama_pos pos) {
    const auto & cells = base.get_cells(seq_id);
    uint32_t first = 0;
    uint32_t n = 0;
    for (uint32_t i = 0; i < cells.size(); ++i) {
        if (cells.is_empty(i) || !cells.seq_has(i, seq_id) || cells.pos_get(i) >= pos) {
            continue;
        }
        first = n == 0 ? i : first;
        if (i != first + n || (n > 0 && cells.pos_get(i) != cells.pos_get(i - 1) + 1)) {
            return { 0, 0 };
        }
        ++n;
    }
    return { first, n };
}
