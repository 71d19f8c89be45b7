// Where the states of recurrent layers lie. A batch gives its sequences rows side by side, and moves others out of their way, before its
// graph is built and computed. Where that fails, llama.cpp leaves the rows as they are then, and a state cannot be rewound.
#pragma once

#include "state/context.h"

#include "llama-memory-recurrent.h"

#include <cstdint>
#include <vector>

class llama_snapkv_placing {
public:
    // before a batch is evaluated. nothing is done for models without recurrent layers
    explicit llama_snapkv_placing(llama_context & ctx);

    // after it has failed: true if nothing was computed; then all sequences hold what they held before. Else the batch's own states
    // are unknown, and sequences that it has moved lose what they hold, and are empty
    bool put_back(const llama_batch & batch);

private:
    bool is_moved(llama_seq_id seq_id) const;

    llama_context & ctx;
    llama_snapkv_memory mem;
    std::vector<llama_memory_recurrent::mem_cell> cells;
    uint32_t head = 0;
    uint32_t used = 0;
    uint32_t n = 0;
    int32_t rs_z = -1;
};

// called for each ubatch when its rows were chosen, and nothing of it was computed. throws std::bad_alloc where a test wants it
void llama_snapkv_note_placed();
