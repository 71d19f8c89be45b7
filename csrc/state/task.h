// The work of one prefill: a prompt, and what it means in a context.
#pragma once

#include "snapkv.h"

#include <algorithm>
#include <cstdint>
#include <vector>

struct llama_snapkv_task {
    const llama_snapkv_prompt & prompt;
    uint32_t window;         // last rows, which all stay
    llama_pos pos0 = 0;      // of the first token
    uint32_t n_cells = 0;    // cells of the sequence, side by side from cell0, that go before the tokens; what follows them is removed
    uint32_t cell0 = 0;
    uint32_t n_kept = 0;     // rows to keep for each KV head, of cells and tokens; the window included
    uint32_t n_kept_max = 0; // if those hold too little of the attention mass

    // rows that later layers have, ascending, once some were selected (evict/selection.h); null: all
    const std::vector<int32_t> * selected = nullptr;

    uint32_t n_rows() const { return selected ? (uint32_t) selected->size() : n_cells + prompt.n_tokens; }
    uint32_t token_of(uint32_t row) const { return (selected ? (uint32_t) (*selected)[row] : row) - n_cells; } // index of the token of a row that is no cell
    llama_pos end() const { return pos0 + (llama_pos) prompt.n_tokens; } // position after the last token

    // without the window
    uint32_t n_prefix() const { return n_rows() - window; }
    uint32_t n_prefix_kept() const { return n_kept - window; }
    uint32_t n_prefix_kept_max() const { return n_kept_max - window; }

    // query rows to save for each layer; cells have none
    uint32_t n_queries() const { return std::min(std::max(window, prompt.n_queries), prompt.n_tokens); }
};
