// The chunks of a prompt, and the cells that each of them takes while it goes through a layer group.
#pragma once

#include "prefill/chunk-memory.h"
#include "state/context.h"
#include "state/task.h"

#include "llama-batch.h"
#include "llama-kv-cache-iswa.h"

#include <cstdint>
#include <exception>
#include <memory>
#include <vector>

struct llama_snapkv_no_room : std::exception {};

class llama_snapkv_batches {
public:
    llama_snapkv_batches(llama_context & ctx, const llama_snapkv_memory & mem, const llama_snapkv_task & task);

    // chunks of the rows from n_past on, and their cells; sliding-window and recurrent layers hold those before already. chunks have
    // n_chunk tokens, and end at the stops, ascending rows. throws std::invalid_argument for bad tokens, llama_snapkv_no_room
    void split(uint32_t n_past, uint32_t n_chunk, const std::vector<uint32_t> & stops);

    uint32_t count() const { return (uint32_t) ubatches.size(); }
    bool is_last(uint32_t i) const { return i + 1 == ubatches.size(); }
    const llama_ubatch & ubatch(uint32_t i) const { return ubatches[i]; }
    uint32_t n_tokens(uint32_t i) const { return ubatches[i].n_tokens; }
    uint32_t row0(uint32_t i) const { return starts[i]; } // of the chunk's first token
    uint32_t end(uint32_t i) const { return starts[i] + ubatches[i].n_tokens; } // the row after its last one
    const std::vector<uint32_t> & rows() const { return starts; } // of the first tokens of all

    // a group's layers see the chunks from the first on; full: the staging cache
    void begin_group(llama_kv_cache & full);
    void begin_chunk(uint32_t i); // one after the other
    void show_all_cells();        // instead of a chunk's: for the largest graph
    void show_cells_of(uint32_t i);
    uint32_t last_full() const; // of the chunks before the last one, the last of those that have most tokens
    void end() { chunk = {}; }
    const llama_memory_context_i * memory() const { return chunk.get(); }

    // cells of the sliding-window layers that chunks take turn and turn about, where sequences that share them go on between chunks
    const std::vector<uint32_t> & ring() const { return cells_ring; }

private:
    void find_cells();
    void make_ring(llama_kv_cache & swa);

    llama_context & ctx;
    const llama_snapkv_memory & mem;
    const llama_snapkv_task & task;

    llama_batch_allocr balloc;
    std::vector<llama_ubatch> ubatches;
    std::vector<uint32_t> starts;

    llama_kv_cache::slot_info_vec_t sinfos_base;
    llama_kv_cache::slot_info_vec_t sinfos_swa;
    std::vector<uint32_t> cells_ring;          // empty: any cells
    std::unique_ptr<llama_kv_cells> cells_swa; // before the tokens, for each group: of the ring, or of the sequence's stream
    llama_snapkv_recurrent_cell cell_recr;     // the same
    llama_snapkv_chunk_memory chunk;
};
