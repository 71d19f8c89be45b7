// Cells of the compact cache that a sequence has or may take.
#pragma once

#include "upstream/snapkv-guard.h"

#include "llama-kv-cache.h"

#include <cstdint>
#include <utility>
#include <vector>

// for a sequence: free cells side by side, or such as no sequence will need; given ones, if they are free or no other's. empty if
// there are none
llama_kv_cache::slot_info llama_snapkv_free_cells(llama_kv_cache & base, llama_seq_id seq_id, uint32_t n_cells, bool side_by_side = true);
llama_kv_cache::slot_info llama_snapkv_cells_at(const llama_kv_cache & base, llama_seq_id seq_id, uint32_t cell0, uint32_t n_cells);

// first one and number of a sequence's cells before a position, if they lie side by side and in the order of their positions;
// else none
std::pair<uint32_t, uint32_t> llama_snapkv_cells_before(const llama_kv_cache & base, llama_seq_id seq_id, llama_pos pos);

// kept rows and window of a compacted sequence as contiguous cells of the compact cache: packed right before the prompt's end
void llama_snapkv_place_cells(llama_kv_cache & base, llama_seq_id seq_id, const llama_kv_cache::slot_info & target, llama_snapkv_record_ptr record);

// Cells of a cache that all sequences share, which one of these is yet to take, or has and will need again whatever lies in them by then:
// until they are released no other sequence finds them free
class llama_snapkv_held_cells {
public:
    llama_snapkv_held_cells() = default;
    // none of a cache in which the sequence has cells of its own; each of the others is free, or only this sequence's
    llama_snapkv_held_cells(llama_kv_cache & kv, llama_seq_id seq_id, const std::vector<uint32_t> & idxs);

    void release(); // they are as they were

private:
    llama_kv_cells * cells = nullptr;
    std::vector<uint32_t> idxs;
    llama_kv_cells before;
};

// while it lives, caches made on this thread get n_cells cells; with all = false sliding-window caches keep theirs
struct llama_snapkv_cells_scope {
    llama_snapkv_cells_scope(uint32_t n_cells, bool all);
    ~llama_snapkv_cells_scope();
};
