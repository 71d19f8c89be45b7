// Rows and positions: a row of a prefill is a cell that goes before its tokens, or a token.
#pragma once

#include "upstream/snapkv-guard.h"

#include <cstdint>
#include <vector>

struct llama_snapkv_positions {
    llama_snapkv_record_ptr before; // of the cells that go before; null if each one's position is its token's
    llama_pos shift = 0;            // position of a token - its row

    const std::vector<int32_t> * selected = nullptr; // rows that cached layers from ic_selected on have; null: all
    uint32_t ic_selected = 0;

    uint32_t n_old(uint32_t ic) const { return before ? before->layers[ic].n_kept : 0; } // rows that each KV head has chosen itself

    llama_pos of(uint32_t ic, size_t head, uint32_t row) const {
        if (selected && ic >= ic_selected) {
            return (*selected)[row] + shift;
        }
        return row < n_old(ic) ? before->layers[ic].ids[head * n_old(ic) + row] : (llama_pos) row + shift;
    }
};
