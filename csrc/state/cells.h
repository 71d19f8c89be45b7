// Cells of the compact cache that a sequence has or may take.
#pragma once

#include "upstream/snapkv-guard.h"

#include "llama-kv-cache.h"

#include <cstdint>
#include <utility>

// side by side, for a sequence: free cells, or given ones. empty if there are none
llama_kv_cache::slot_info llama_snapkv_free_cells(llama_kv_cache & base, llama_seq_id seq_id, uint32_t n_cells);
llama_kv_cache::slot_info llama_snapkv_cells_at(const llama_kv_cache & base, llama_seq_id seq_id, uint32_t cell0, uint32_t n_cells);

// first one and number of a sequence's cells before a position, if they lie side by side and in the order of their positions;
// else none
std::pair<uint32_t, uint32_t> llama_snapkv_cells_before(const llama_kv_cache & base, llama_seq_id seq_id, llama_pos pos);

// kept rows and window of a compacted sequence as contiguous cells of the compact cache: packed right before the prompt's end
void llama_snapkv_place_cells(llama_kv_cache & base, llama_seq_id seq_id, const llama_kv_cache::slot_info & target, llama_snapkv_record_ptr record);

// while it lives, caches made on this thread get n_cells cells; with all = false sliding-window caches keep theirs
struct llama_snapkv_cells_scope {
    llama_snapkv_cells_scope(uint32_t n_cells, bool all);
    ~llama_snapkv_cells_scope();
};
