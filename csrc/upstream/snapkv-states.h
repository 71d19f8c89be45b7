// States of recurrent layers behind earlier tokens of a sequence, in host memory: what cannot be computed from its cells.
#pragma once

#include "llama.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

// behind one token
struct llama_snapkv_kept_state {
    llama_pos pos = 0;              // of the token that comes next
    const uint8_t * data = nullptr; // of all recurrent layers, see state/recurrent.h
    std::vector<uint8_t> memory;    // of data; empty where it is the caller's
    std::vector<float> logits;      // [n_vocab] of the token; empty where they are not known

    size_t bytes() const { return memory.size() + logits.size() * sizeof(float); } // in memory of ours
};

using llama_snapkv_kept_state_ptr = std::shared_ptr<const llama_snapkv_kept_state>;

// those of one sequence, by position
class llama_snapkv_states {
public:
    // in the place of one at the same position. of more than MAX the one goes that is least missed: its neighbours are near each
    // other, as seen from the end
    void add(llama_snapkv_kept_state_ptr state);

    void truncate(llama_pos pos); // those behind it go

    llama_snapkv_kept_state_ptr last(llama_pos pos) const; // at or before it; null if there is none

    const std::vector<llama_snapkv_kept_state_ptr> & all() const { return states; }

    static constexpr size_t MAX = 12;

private:
    std::vector<llama_snapkv_kept_state_ptr> states;
};
