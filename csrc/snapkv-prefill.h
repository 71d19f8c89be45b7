// Layer-group prefill: the prompt goes through G cached layers at a time, and these are scored and evicted before the
// next ones start. The last token's logits equal those of llama_decode() with equal chunks.
#pragma once

#include "snapkv-context.h"

// arguments and return code as llama_snapkv_prefill(), for a prompt longer than its rows
int32_t llama_snapkv_prefill_groups(
        llama_context & ctx, llama_snapkv & sk, llama_seq_id seq_id, const llama_token * tokens, uint32_t n_tokens,
        llama_snapkv_progress_callback progress, void * user_data);
