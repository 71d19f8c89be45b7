// Layer-group prefill: the prompt goes through G cached layers at a time, and these are scored and evicted before the
// next ones start. The last token's logits equal those of llama_decode() with equal chunks.
#pragma once

#include "state/context.h"

// tokens to evaluate, and what is before them
struct llama_snapkv_prompt {
    llama_seq_id seq_id = 0;
    const llama_token * tokens = nullptr;
    uint32_t n_tokens = 0;
    llama_pos pos0 = 0;   // of the first token
    uint32_t n_cells = 0; // cells of the sequence, side by side from cell0, that go before the tokens; what follows them is removed
    uint32_t cell0 = 0;
    uint32_t n_rows = 0; // to keep for each KV head, of cells and tokens; the window included
    uint32_t n_rows_max = 0; // if those hold too little of the attention mass

    llama_snapkv_progress_callback progress = nullptr;
    void * user_data = nullptr;
};

// return code as llama_snapkv_prefill()
int32_t llama_snapkv_prefill_groups(llama_context & ctx, llama_snapkv & sk, const llama_snapkv_prompt & prompt);
