// Rows and positions: a row of a prefill is a cell that goes before its tokens, or a token.
#pragma once

#include "upstream/snapkv-guard.h"

struct llama_snapkv_positions {
    llama_snapkv_record_ptr before; // of the cells that go before; null if each one's position is its token's
    llama_pos shift = 0;            // position of a token - its row

    uint32_t n_old(uint32_t ic) const { return before ? before->layers[ic].n_kept : 0; } // rows that each KV head has chosen itself

    llama_pos of(uint32_t ic, size_t head, uint32_t row) const {
        return row < n_old(ic) ? before->layers[ic].ids[head * n_old(ic) + row] : (llama_pos) row + shift;
    }
};
