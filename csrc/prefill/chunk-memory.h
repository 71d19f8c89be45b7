// What llama.cpp's graphs know of the chunks' cells: its memory context of a batch, with the staging cache in the place of
// the compact one. Sliding-window caches and recurrent memories are the context's own.
#pragma once

#include "state/context.h"

#include "llama-memory-recurrent.h"

#include <memory>
#include <vector>

class llama_snapkv_chunk_memory {
public:
    llama_snapkv_chunk_memory() = default;
    llama_snapkv_chunk_memory(const llama_snapkv_memory & mem, llama_kv_cache & staging, llama_kv_cache::slot_info_vec_t sinfos_base, llama_kv_cache::slot_info_vec_t sinfos_swa,
            std::vector<llama_ubatch> ubatches);

    void next() { mctx->next(); } // to the next chunk

    void apply(); // cells of the chunk in the sliding-window cache and in the recurrent memory
    // those of the staging cache are not filled in: its mask is ours and its indices are given. so only the number of cells in use is
    // needed, as get_n_kv() would return it
    void set_n_kv(uint32_t n_kv);

    const llama_memory_context_i * get() const { return mctx.get(); }

private:
    llama_memory_context_ptr mctx;
    llama_kv_cache_context * base = nullptr;
    llama_kv_cache_context * swa = nullptr;          // null: no layers with a sliding window
    llama_memory_recurrent_context * recr = nullptr; // null: no recurrent layers
};

// The cell that has the state of a sequence. All layers share it, each has a state of its own in it: restored to what it was before the
// prompt, each layer group begins with the state that its layers had then, or with an empty one. Where other sequences go on in
// between, their graphs may move it, with the states of all layers, and it is restored where it is then
class llama_snapkv_recurrent_cell {
public:
    llama_snapkv_recurrent_cell() = default;
    llama_snapkv_recurrent_cell(const llama_memory_recurrent & mem, llama_seq_id seq_id);

    void restore(llama_memory_recurrent & mem) const;

private:
    llama_seq_id seq_id = 0;
    llama_pos pos = -1; // of the token before the prompt; -1: there is none
};
