#include "prefill/tail.h"

#include "state/cells.h"
#include "upstream/access.h"

#include "ggml-backend.h"

#include <algorithm>
#include <map>

using access = llama_snapkv_access;

size_t llama_snapkv_tail_bytes(const llama_kv_cache & swa, uint32_t n_rows) {
    size_t size = 0;
    for (const auto & layer : access::layers(swa)) {
        size += access::row_bytes(layer) * (size_t) n_rows;
    }
    return size;
}

void llama_snapkv_save_tail(const llama_kv_cache & swa, llama_seq_id seq_id, uint32_t end, uint32_t n_max, llama_snapkv_vault::segment & seg) {
    const uint32_t strm = swa.get_stream(seq_id);
    const auto & cells = swa.get_cells(seq_id);
    std::map<llama_pos, uint32_t> found;
    for (uint32_t i = 0; i < cells.size(); ++i) {
        if (!cells.is_empty(i) && cells.seq_has(i, seq_id)) {
            found[cells.pos_get(i)] = i;
        }
    }
    auto & tail = seg.swa;
    tail.pos0 = end;
    while (end - tail.pos0 < n_max && tail.pos0 > 0 && found.count((llama_pos) tail.pos0 - 1)) {
        tail.pos0--;
    }
    tail.n_rows = end - tail.pos0;
    tail.capacity = tail.n_rows;
    seg.swa_memory.resize(llama_snapkv_tail_bytes(swa, tail.n_rows));
    tail.data = seg.swa_memory.data();

    uint8_t * to = seg.swa_memory.data();
    for (const auto & layer : access::layers(swa)) {
        for (const ggml_tensor * t : access::tensors(layer, strm)) {
            for (uint32_t p = tail.pos0; p < end;) {
                const uint32_t cell = found.at((llama_pos) p);
                uint32_t n = 1; // rows side by side
                while (p + n < end && found.at((llama_pos) (p + n)) == cell + n) {
                    ++n;
                }
                ggml_backend_tensor_get(t, to, cell * t->nb[1], n * t->nb[1]);
                to += n * t->nb[1];
                p += n;
            }
        }
    }
}

// where a prefill from the first position on leaves these rows, so that sums over them have its order; any free cells beside another
// sequence's
static llama_kv_cache::slot_info cells_of(llama_kv_cache & swa, llama_seq_id seq_id, uint32_t pos0, uint32_t end) {
    if (swa.get_cells(seq_id).get_used() > 0) {
        return llama_snapkv_free_cells(swa, seq_id, end - pos0);
    }
    auto res = llama_snapkv_cells_at(swa, seq_id, 0, end - pos0);
    for (uint32_t i = 0; !res.empty() && i < end - pos0; ++i) {
        res.idxs[0][i] = (pos0 + i) % swa.get_size();
    }
    return res;
}

bool llama_snapkv_load_tail(llama_kv_cache & swa, llama_seq_id seq_id, uint32_t end, uint32_t n_swa, const llama_snapkv_vault::tail & tail) {
    const uint32_t pos0 = std::max(tail.pos0, end - std::min(end, n_swa));
    const auto target = cells_of(swa, seq_id, pos0, end);
    if (target.empty()) {
        return false;
    }
    auto & cells = access::v_cells(swa)[target.strm[0]];
    for (uint32_t i = 0; i < end - pos0; ++i) {
        const uint32_t cell = target.idxs[0][i];
        if (!cells.is_empty(cell)) {
            cells.rm(cell); // out of its sequence's window
        }
        cells.pos_set(cell, (llama_pos) (pos0 + i));
        cells.seq_add(cell, seq_id);
    }
    access::v_heads(swa)[target.strm[0]] = target.idxs[0].back() + 1;

    const auto & idxs = target.idxs[0];
    const uint8_t * from = tail.data;
    for (const auto & layer : access::layers(swa)) {
        for (ggml_tensor * t : access::tensors(layer, target.strm[0])) {
            for (uint32_t i = 0, n = 0; i < idxs.size(); i += n) {
                for (n = 1; i + n < idxs.size() && idxs[i + n] == idxs[i] + n;) {
                    ++n;
                }
                ggml_backend_tensor_set(t, from + (pos0 + i - tail.pos0) * t->nb[1], idxs[i] * t->nb[1], n * t->nb[1]);
            }
            from += tail.capacity * t->nb[1];
        }
    }
    return true;
}
