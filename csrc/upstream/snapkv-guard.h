// What a KV cache must know of its compacted sequences. Included by the patched llama-kv-cache.h.
//
// After eviction each KV head of each layer holds other tokens in the same cell, so a cell of the kept prefix has a
// position only by convention: packed right before the window, [n_prompt - n_rows, n_prompt - window). Whatever reads
// a position there as a token's own would be silently wrong, and is refused by the functions below. Each names the
// upstream function that calls it first thing; where it returns false, that function does nothing and returns.
#pragma once

#include "snapkv-states.h"

#include "llama.h"

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

class llama_io_write_i;
class llama_io_read_i;
class llama_kv_cache;

// one compacted sequence
struct llama_snapkv_record {
    struct layer {
        int32_t il;                // layer of the model
        uint32_t n_head_kv;
        uint32_t n_kept;            // prefix rows for each KV head
        std::vector<int32_t> ids;   // prompt positions [n_kept, n_head_kv], ascending for each head
    };

    uint32_t n_prompt = 0;
    uint32_t window = 0;
    // a layer that keeps fewer rows than another begins in a later cell, and all end in the same one. only caches of one
    // sequence have such layers, and there the first cell is 0
    std::vector<layer> layers;

    uint32_t max_kept() const;

    // from here on a cell's position is its token's
    llama_pos pos_exact() const { return (llama_pos) n_prompt - (llama_pos) window; }
};

using llama_snapkv_record_ptr = std::shared_ptr<const llama_snapkv_record>;
using llama_snapkv_records = std::map<llama_seq_id, llama_snapkv_record_ptr>;

class llama_snapkv_guard {
public:
    // llama_kv_cache_iswa::seq_rm, before either of its caches changes. removal is allowed if it takes all of a
    // compacted sequence, or starts at or after pos_exact
    bool allows_rm(const llama_kv_cache & kv, llama_seq_id seq_id, llama_pos p0, llama_pos p1) const;
    // llama_kv_cache::seq_rm. as allows_rm, and forgets what is removed entirely, states behind what is left, and looks
    bool rm(const llama_kv_cache & kv, llama_seq_id seq_id, llama_pos p0, llama_pos p1);

    // llama_kv_cache_iswa::seq_cp and llama_kv_cache::seq_cp. a part of the kept prefix cannot be copied
    bool allows_cp(const llama_kv_cache & kv, llama_seq_id src, llama_seq_id dst, llama_pos p0, llama_pos p1) const;
    bool cp(const llama_kv_cache & kv, llama_seq_id src, llama_seq_id dst, llama_pos p0, llama_pos p1);

    // seq_add and seq_div of both caches. states, which are kept by position, go where it is allowed
    bool allows_shift(llama_seq_id seq_id);

    void keep(llama_seq_id seq_id);             // llama_kv_cache::seq_keep
    void clear();                               // llama_kv_cache::clear
    bool empty() const { return records.empty(); } // llama_kv_cache::get_can_shift: no shift while anything is compacted

    // llama_kv_cache::state_write, in place of writing n_stream. without compacted sequences the bytes are upstream's;
    // with them a flag in n_stream makes an unpatched reader refuse ("n_stream mismatch")
    void state_write(llama_io_write_i & io, uint32_t n_stream, llama_seq_id seq_id) const;
    // llama_kv_cache::state_read_sinfo, after reading n_stream; takes the flag out of it
    static llama_snapkv_records state_read(llama_io_read_i & io, uint32_t & n_stream);
    // llama_kv_cache::state_read_sinfo, when the cells are in place
    void state_restore(llama_seq_id seq_id, const llama_snapkv_records & read);

    // llama_kv_cache::get_k and get_v: first cells that a layer has no rows in
    uint32_t skip(int32_t il) const;

    llama_snapkv_record_ptr get(llama_seq_id seq_id) const;
    void set(llama_seq_id seq_id, llama_snapkv_record_ptr record);

    // of recurrent layers, where the sequence's cells hold all that goes before
    const llama_snapkv_states & states_of(llama_seq_id seq_id) const;
    void keep_state(llama_seq_id seq_id, llama_snapkv_kept_state_ptr state);

    // the position whose recurrent state is put aside before guesses; -1 if none is, or the tokens before it are no longer those
    llama_pos look_of(llama_seq_id seq_id) const;
    void set_look(llama_seq_id seq_id, llama_pos pos);

private:
    llama_snapkv_records records;
    std::map<llama_seq_id, llama_snapkv_states> states;
    std::map<llama_seq_id, llama_pos> looks;
};

// [head_dim, n_head_kv, n_kv - skip]: cells skip, skip + 1, ... of cached rows [n_embd_gqa, n_cells]
struct ggml_tensor * llama_snapkv_rows(struct ggml_context * ctx, struct ggml_tensor * cached, int64_t head_dim, int64_t n_head_kv, uint32_t skip, uint32_t n_kv);

// llm_graph_context::build_attn_mha: if the attention has fewer keys than mask columns, its mask becomes the last columns
void llama_snapkv_fit_mask(struct ggml_context * ctx, struct ggml_tensor * attn);

// llama_kv_cache's constructor: the cells to allocate for a cache that upstream would give kv_size. differs from
// kv_size only while this thread is in llama_snapkv_init_from_model() or llama_snapkv_supported()
uint32_t llama_snapkv_n_cells(uint32_t kv_size, bool is_swa);
